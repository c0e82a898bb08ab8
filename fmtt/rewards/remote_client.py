"""One request to an OpenAI-compatible chat endpoint, over before its deadline whatever the server does.

The standard library's time-outs hold for single reads, so that a server that sends a byte now and then
holds a caller for ever. Here a timer closes the connection at the deadline, which ends whatever waits on it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import socket
import threading
import time
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

from fmtt.errors import UserError

LARGEST_REPLY = 1 << 20
"""Bytes of a reply that are read; a longer one is no answer."""
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""Status codes that may pass: the server is busy or broken, the request is not."""


class Failure(Exception):
    """A try that failed and may be repeated.

    Attributes:
        wait: seconds that the server asks to wait, 0 where it does not say.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint(NamedTuple):
    """Where to ask.

    Attributes:
        url: of the API, for instance http://localhost:8000/v1.
        key: the API key, or "".
        timeout: seconds from the start of a try to its end; agreeing on TLS with a slow server may add
            as much again.
    """

    url: str
    key: str
    timeout: float

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that the server answers to a POST of ``body``.

        Raises:
            Failure: when a further try may go better.
            UserError: when it cannot: the server refuses the request itself.
        """
        parts = urllib.parse.urlsplit(self.url)
        target = parts.path.rstrip("/") + path
        deadline = time.monotonic() + self.timeout
        connection, target = _connection(parts, target, self.timeout)
        sockets: list[socket.socket] = []
        timer = threading.Timer(self.timeout, _shut, [sockets])
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            sockets.append(connection.sock)  # the connection forgets it before the reply is read
            if time.monotonic() >= deadline:
                raise TimeoutError
            status, wait, content = _exchange(connection, target, self._headers(), json.dumps(body).encode())
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline or isinstance(error, TimeoutError):
                raise Failure(f"no answer within {self.timeout:g} s") from error
            raise Failure(f"{type(error).__name__}: {error}") from error
        finally:
            timer.cancel()
            connection.close()
        if time.monotonic() >= deadline:  # the timer cut the reply off, which may look like its end
            raise Failure(f"no answer within {self.timeout:g} s")
        return _decoded(self.url, status, wait, content)

    def _headers(self) -> dict[str, str]:
        authorisation = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"Content-Type": "application/json", "Accept": "application/json", **authorisation}


def check_url(url: str) -> str:
    """``url`` without a closing slash.

    Raises:
        UserError: when it is no http or https address.
    """
    parts = urllib.parse.urlsplit(url)
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"url must be an http or https address such as http://localhost:8000/v1, got {url!r}")
    return url.rstrip("/")


def _connection(
    parts: urllib.parse.SplitResult, target: str, timeout: float
) -> tuple[http.client.HTTPConnection, str]:
    """A connection, through the environment's proxy if there is one, and what to ask it for."""
    host, secure = parts.hostname or "", parts.scheme == "https"
    make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return make(host, parts.port, timeout=timeout), target
    through = urllib.parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    connection = make(through.hostname or "", through.port, timeout=timeout)
    if not secure:
        return connection, f"{parts.scheme}://{parts.netloc}{target}"
    connection.set_tunnel(host, parts.port)
    return connection, target


def _shut(sockets: list[socket.socket]) -> None:
    """End whatever waits on the sockets, in another thread."""
    for own in sockets:
        with contextlib.suppress(OSError):
            own.shutdown(socket.SHUT_RDWR)


def _exchange(
    connection: http.client.HTTPConnection, target: str, headers: dict[str, str], body: bytes
) -> tuple[int, float, bytes]:
    """(status, seconds to wait, content) of one request."""
    connection.request("POST", target, body, headers)
    response = connection.getresponse()
    content = response.read(LARGEST_REPLY + 1)
    if len(content) > LARGEST_REPLY:
        raise ValueError(f"a reply of more than {LARGEST_REPLY} bytes")
    try:
        wait = float(response.headers.get("Retry-After", "0"))
    except ValueError:  # a date, which is rare and of no use across clocks
        wait = 0.0
    return response.status, wait if math.isfinite(wait) and wait > 0 else 0.0, content


def _decoded(url: str, status: int, wait: float, content: bytes) -> Any:
    said = " ".join(content[:200].decode("utf-8", "replace").split())
    if status in RETRIED:
        raise Failure(f"HTTP {status}: {said}", wait)
    if status in (401, 403):
        raise UserError(f"{url} refuses the API key (HTTP {status}); set the variable that key_env names")
    if status == 404:
        raise UserError(
            f"{url} has no /chat/completions or no such model (HTTP 404: {said}); check url and model"
        )
    if not 200 <= status < 300:
        raise UserError(f"{url} refuses the request (HTTP {status}): {said}")
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"the reply is no JSON: {said!r}") from error
