"""A chat endpoint on this machine that answers as it is told, and an impatient judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from fmtt.rewards.remote import RemoteJudge

Reply = str | None | tuple[int, bytes]
"""What a chat message says, or a status and raw content."""


class Server:
    """``behaviour(handler, number of the request)`` answers each request; ``requests`` keeps them."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.together = self.most_together = 0
        self.behaviour: Callable[[BaseHTTPRequestHandler, int], None]
        self.answers("5")
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append({"path": self.path, **body})
                    outer.headers.append(dict(self.headers))
                    number = len(outer.requests)
                    outer.together += 1
                    outer.most_together = max(outer.most_together, outer.together)
                try:
                    outer.behaviour(self, number)
                except OSError:
                    pass  # the judge has hung up
                finally:
                    with lock:
                        outer.together -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def answers(self, *replies: Reply, **headers: str) -> None:
        """Give these replies in turn, the last for ever."""

        def behaviour(handler: BaseHTTPRequestHandler, number: int) -> None:
            self.send(handler, replies[min(number, len(replies)) - 1], **headers)

        self.behaviour = behaviour

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, reply: Reply, **headers: str) -> None:
        status, content = reply if isinstance(reply, tuple) else (200, Server.said(reply))
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    @staticmethod
    def said(text: str | None) -> bytes:
        return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def judge(server: Server) -> Callable[..., RemoteJudge]:
    """``judge(**settings)``: impatient, so that tests are quick."""

    def make(**settings: Any) -> RemoteJudge:
        return RemoteJudge(server.url, "tiny", **{"timeout": 10.0, "tries": 2, "backoff": 0.01, **settings})

    return make


@pytest.fixture
def images(generator: torch.Generator) -> torch.Tensor:
    return torch.rand(6, 3, 8, 8, generator=generator) * 2 - 1
