"""Where shards lie: a folder, a web server, or behind a shell command. A store gives a file's bytes by name.

What a store says for certain (the file is not there, the command failed each time) is an OSError, and the
reader counts its samples as lost. A server that stalls or breaks off says nothing for certain, and skipping
its shard would make the order depend on the network: after a bounded number of tries that is a UserError.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn, Protocol

from fmtt.errors import UserError

TIMEOUT, TRIES = 30.0, 3
PLACEHOLDER = "{shard}"
LEAST_BYTES = 2**14
"""Less than this in one time-out is a stall; a server that trickles is given up too."""
_PIECE = 2**20
_LONGEST_PAUSE = 5.0


class Store(Protocol):
    """The files of one set."""

    def where(self, name: str) -> str:
        """The file as messages name it."""
        ...

    def read(self, name: str) -> bytes:
        """The file's bytes.

        Raises:
            FileNotFoundError: when it is not there; OSError when it cannot be read.
            UserError: when the other side stalls or breaks off each time.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """Files on disk."""

    path: Path

    def where(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


@dataclass(frozen=True)
class WebServer:
    """Files below a URL, or at a URL in which ``{shard}`` stands for the name."""

    url: str
    timeout: float = TIMEOUT
    tries: int = TRIES

    def where(self, name: str) -> str:
        quoted = urllib.parse.quote(name)
        return _fill(self.url, quoted) if PLACEHOLDER in self.url else f"{self.url.rstrip('/')}/{quoted}"

    def read(self, name: str) -> bytes:
        reason = ""
        for attempt in range(self.tries):
            _pause(attempt)
            try:
                return self._fetch(self.where(name))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                if error.code in (404, 410):
                    raise FileNotFoundError(error.code, reason) from None
                if error.code < 500 and error.code not in (408, 429):
                    raise OSError(error.code, reason) from None
            except TimeoutError:
                reason = f"stalled for {self.timeout:g} s"
            except urllib.error.URLError as error:
                slow = isinstance(error.reason, TimeoutError)
                reason = f"stalled for {self.timeout:g} s" if slow else f"no connection ({error.reason})"
            except (HTTPException, OSError) as error:
                reason = f"broke off ({error or type(error).__name__})"
        _give_up(self.where(name), reason, self.tries, "the server")

    def _fetch(self, url: str) -> bytes:
        pace = _Pace(self.timeout)
        with urllib.request.urlopen(url, timeout=self.timeout) as response:
            expected = response.length
            content = bytearray()
            while piece := response.read1(_PIECE):
                content += piece
                pace.count(len(piece))
        if expected is not None and len(content) < expected:
            raise HTTPException(f"{len(content)} of {expected} bytes")
        return bytes(content)


@dataclass(frozen=True)
class Command:
    """The output of a shell command in which ``{shard}`` stands for the name."""

    command: str
    timeout: float = TIMEOUT
    tries: int = TRIES

    def where(self, name: str) -> str:
        return "pipe:" + _fill(self.command, shlex.quote(name))

    def read(self, name: str) -> bytes:
        reason = ""
        for attempt in range(self.tries):
            _pause(attempt)
            try:
                return self._run(_fill(self.command, shlex.quote(name)))
            except TimeoutError:
                reason = ""
            except OSError as error:
                reason = error.strerror or str(error)
        if reason:
            raise OSError(1, reason)
        _give_up(self.where(name), f"stalled for {self.timeout:g} s", self.tries, "the command")

    def _run(self, command: str) -> bytes:
        pace = _Pace(self.timeout)
        content = bytearray()
        with (
            tempfile.TemporaryFile() as complaints,
            subprocess.Popen(
                command, shell=True, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True
            ) as process,
        ):
            assert process.stdout is not None
            poll = select.poll()
            poll.register(process.stdout)
            try:
                while True:
                    if not poll.poll(1000 * pace.left()):
                        raise TimeoutError
                    piece = os.read(process.stdout.fileno(), _PIECE)
                    if not piece:
                        break
                    content += piece
                    pace.count(len(piece))
                status = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError from None
            finally:
                _end_group(process)
            if status:
                complaints.seek(0)
                said = complaints.read().decode(errors="replace").split("\n")
                last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
                raise OSError(status, f"the command ended with status {status} ({last})")
        return bytes(content)


class _Pace:
    """Raises TimeoutError where less than LEAST_BYTES came in one time-out."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._deadline, self._wanted = time.monotonic() + timeout, LEAST_BYTES

    def left(self) -> float:
        """Seconds until the next bytes are too late."""
        return max(0.0, self._deadline - time.monotonic())

    def count(self, size: int) -> None:
        """``size`` bytes came in."""
        self._wanted -= size
        if self._wanted <= 0:
            self._deadline, self._wanted = time.monotonic() + self._timeout, LEAST_BYTES
        elif self.left() == 0:
            raise TimeoutError


def _fill(template: str, name: str) -> str:
    return template.replace(PLACEHOLDER, name)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a command that was not waited for, with all that it started."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _pause(attempt: int) -> None:
    if attempt:
        time.sleep(min(_LONGEST_PAUSE, 0.25 * 2**attempt))


def _give_up(where: str, reason: str, tries: int, what: str) -> NoReturn:
    more = "raise data.timeout or data.tries (--timeout or --tries of verify)"
    raise UserError(f"{where}: {reason}, {tries} tries; check {what}, or {more}")


def open_store(source: str | Path, *, timeout: float = TIMEOUT, tries: int = TRIES) -> Store:
    """The store of a source: a folder, ``http(s)://...`` or ``pipe:COMMAND``.

    A command is run by the shell: take sources from people you trust. ``{shard}`` in it, or in a URL, stands
    for a file's name, index.json included; without it, a URL is taken as a folder.

    Args:
        source: a path, a URL or a command.
        timeout: seconds without ``LEAST_BYTES`` after which a try is given up; a try whose bytes come in
            one by one ends within two of them.
        tries: how often a file is asked for, with pauses of at most 5 s between.

    Raises:
        UserError: when the source is none of these, or a number is out of range.
    """
    if not str(source).strip():
        raise UserError(
            "the data source (data.source, data.sources, or SOURCE of verify) is empty: give a folder of "
            f"shards, http(s)://... or 'pipe:COMMAND {PLACEHOLDER}'"
        )
    if not 0 < timeout < float("inf"):
        raise UserError(f"data.timeout (--timeout) must be greater than 0 and finite, got {timeout}")
    if tries < 1:
        raise UserError(f"data.tries (--tries) must be at least 1, got {tries}")
    scheme, colon, rest = str(source).partition(":")
    if isinstance(source, Path) or not colon:
        return Folder(Path(source))
    if scheme == "pipe":
        if PLACEHOLDER not in rest:
            raise UserError(f"data source {source!r}: the command must hold {PLACEHOLDER}, the file's name")
        return Command(rest, timeout, tries)
    if scheme in ("http", "https"):
        return WebServer(str(source), timeout, tries)
    if rest.startswith("//"):
        raise UserError(
            f"data source {source!r}: {scheme} is not read directly; use 'pipe:COMMAND {{shard}}'"
        )
    return Folder(Path(source))
