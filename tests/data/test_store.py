"""Shards from a web server or a command: the same samples, and no wait longer than stated."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from data.index import INDEX_NAME, read_index
from data.shards import ShardBatches
from data.store import Command, Folder, WebServer, open_store
from data.stream import Layout, Stream
from data.write_shards import write_procedural
from fmtt.errors import UserError


class Server:
    """A web server over a folder that can be told to misbehave for files by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self.asked = folder, {}, Counter()
        self.closing = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self, self.path.split("?")[0].rsplit("/", 1)[-1])

            def log_message(self, *args) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/set"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, name: str) -> None:
        self.asked[name] += 1
        fault = self.faults.get(name, "")
        path = self.folder / name
        if fault == "silent":
            self.closing.wait(60)
            return
        if fault == "503 once":
            fault = "503" if self.asked[name] == 1 else ""
        if fault.isdigit() or not path.is_file():
            request.send_error(int(fault or 404) if fault.isdigit() else 404)
            return
        content = path.read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if fault == "trickle":
            for byte in content:
                request.wfile.write(bytes([byte]))
                if self.closing.wait(0.02):
                    return
        elif fault:
            request.wfile.write(content[: len(content) // 2])
            request.wfile.flush()
            if fault == "stalls":
                self.closing.wait(60)
        else:
            request.wfile.write(content)

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_procedural("mixture-labelled", tmp_path / "set", 24, shard_size=8)
    return tmp_path / "set"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.close()


def rows(source: str | Path, **options) -> torch.Tensor:
    batches = ShardBatches(source, 4, **options)
    return torch.cat([batches.batch(k).x for k in range(batches.batches_per_epoch)])


def shard(folder: Path, number: int) -> str:
    return read_index(folder / INDEX_NAME).shards[number].name


def test_a_server_and_a_command_give_what_the_folder_gives(server: Server, folder: Path):
    expected = rows(folder)
    assert torch.equal(rows(server.url), expected)
    assert torch.equal(rows(server.url + "/{shard}?key=1"), expected)
    assert torch.equal(rows(f"pipe:cat '{folder}'/{{shard}} | cat"), expected)


@pytest.mark.parametrize("fault", ["silent", "stalls", "trickle"])
def test_a_server_that_stalls_is_given_up_in_time(server: Server, folder: Path, fault: str):
    name = shard(folder, 1)
    server.faults[name] = fault
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        WebServer(server.url, timeout=0.3, tries=2).read(name)
    assert time.monotonic() - start < 10  # two tries of at most 0.6 s, and half a second between
    assert str(caught.value) == (
        f"{server.url}/{name}: stalled for 0.3 s, 2 tries; "
        "check the server, or raise data.timeout or data.tries (--timeout or --tries of verify)"
    )
    assert server.asked[name] == 2


def test_a_server_that_breaks_off_or_refuses_is_given_up(server: Server, folder: Path):
    name = shard(folder, 1)
    size = (folder / name).stat().st_size
    server.faults[name] = "breaks"
    with pytest.raises(UserError, match=rf"broke off \({size // 2} of {size} bytes\), 1 tries"):
        WebServer(server.url, tries=1).read(name)
    server.faults[name] = "500"
    with pytest.raises(UserError, match="HTTP 500 Internal Server Error, 2 tries"):
        WebServer(server.url, tries=2).read(name)
    with pytest.raises(UserError, match="no connection"):
        WebServer("http://127.0.0.1:9", tries=1).read(name)


def test_a_server_that_recovers_is_not_noticed(server: Server, folder: Path):
    name = shard(folder, 1)
    server.faults[name] = "503 once"
    assert torch.equal(rows(server.url), rows(folder))
    assert server.asked[name] == 2


def test_what_a_server_does_not_have_is_counted_and_replaced(server: Server, folder: Path):
    name = shard(folder, 1)
    server.faults[name] = "404"
    with pytest.raises(UserError, match=rf"8 of 24 samples .* worst shard is {name} .*: is missing"):
        rows(server.url, tries=3)
    assert server.asked[name] == 1  # a definite answer is not asked for again
    assert len(rows(server.url, max_bad_fraction=0.4)) == 24
    server.faults[name] = "403"
    with pytest.raises(UserError, match=f"{name}: cannot be read: HTTP 403 Forbidden"):
        rows(server.url)


def test_a_file_that_is_cut_on_the_server_is_read_up_to_the_cut(server: Server, folder: Path):
    name = shard(folder, 0)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated"):
        rows(server.url)
    assert torch.equal(rows(server.url, max_bad_fraction=0.4), rows(folder, max_bad_fraction=0.4))


def test_an_index_that_cannot_be_fetched_is_an_error(server: Server):
    for fault, message in (
        ("404", "index.json is missing"),
        ("403", "cannot be read: HTTP 403"),
        ("silent", "stalled"),
    ):
        server.faults[INDEX_NAME] = fault
        with pytest.raises(UserError, match=message) as caught:
            ShardBatches(server.url, 4, timeout=0.2, tries=1)
        assert "write the shards again" not in str(caught.value)
    with pytest.raises(UserError, match=r"^http://127.0.0.1:9/index.json: no connection") as caught:
        ShardBatches("http://127.0.0.1:9", 4, tries=1)
    assert "write the shards again" not in str(caught.value)


def test_training_hears_of_a_stall_in_the_background(server: Server, folder: Path):
    server.faults[shard(folder, 2)] = "silent"
    stream = Stream(lambda _: ShardBatches(server.url, 4, timeout=0.2, tries=1), Layout(4))
    with pytest.raises(UserError, match="stalled"):
        for _ in zip(range(6), stream, strict=False):
            pass


def test_a_command_that_fails_is_a_lost_shard_and_says_why(folder: Path):
    name = shard(folder, 1)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: cannot be read: the command ended with status 1 \(cat: "):
        rows(f"pipe:cat {folder}/{{shard}}", tries=1)


def test_a_command_that_stalls_is_ended_with_all_that_it_started(tmp_path: Path):
    command = Command(f"(sleep 60 & echo $! > {tmp_path}/pid; wait; cat {{shard}}) | cat", 1.0, 1)
    start = time.monotonic()
    with pytest.raises(UserError, match="stalled for 1 s, 1 tries; check the command"):
        command.read("x.tar")
    assert time.monotonic() - start < 10
    stat = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    while stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() - start < 20
        time.sleep(0.02)


def test_a_name_reaches_the_command_as_one_word():
    name = "a b'; $(echo c) \"d"
    assert Command("printf %s {shard}").read(name).decode() == name


def test_sources_are_told_apart():
    assert open_store("runs/a:b") == Folder(Path("runs/a:b"))
    assert open_store("https://host/a", timeout=1, tries=2) == WebServer("https://host/a", 1, 2)
    assert open_store("pipe:cat {shard}") == Command("cat {shard}")
    for source, options, message in (
        ("pipe:cat x", {}, r"must hold \{shard\}"),
        ("s3://bucket/a", {}, "use 'pipe:COMMAND"),
        ("a", {"timeout": 0}, r"data.timeout \(--timeout\) must be greater than 0"),
        ("a", {"tries": 0}, r"data.tries \(--tries\) must be at least 1"),
        ("", {}, r"the data source \(data.source, .*\) is empty"),
    ):
        with pytest.raises(UserError, match=message):
            open_store(source, **options)
