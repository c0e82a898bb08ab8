"""Servers that stall, fail and lie: an error in the stated time, and never a request above the budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import torch

from fmtt.errors import UserError
from fmtt.rewards.remote import RemoteJudge

LIES: dict[str, tuple[Any, str]] = {
    "500": ((500, b"oops"), "HTTP 500: oops"),
    "429": ((429, b"oops"), "HTTP 429"),
    "not JSON": ((200, b'{"choices": ['), "no JSON"),
    "wrong schema": ((200, b'{"answer": 5}'), 'no chat completion: {"answer": 5}'),
    "empty choices": ((200, b'{"choices": []}'), "no chat completion"),
    "a list": ((200, b"[5]"), "no chat completion"),
    "out of range": ("11", "the grade '11' is not from 0 to 10"),
    "negative": ("-1", "the grade '-1' is not"),
    "NaN": ("NaN", "the grade 'NaN' is not"),
    "infinite": ("inf", "the grade 'inf' is not"),
    "chatter": ("I would say 7", "not a number: 'I would say 7'"),
    "null": (None, "the grade None is not"),
    "endless": ((200, b"5" * (1 << 21)), "more than 1048576 bytes"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_grade_is_an_error(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor, lie: str
) -> None:
    reply, message = LIES[lie]
    server.answers(reply)
    reward = judge()
    with pytest.raises(UserError, match="gave no grade in 2 tries") as caught:
        reward(images[:1])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert len(server.requests) == reward.calls == 2


@pytest.mark.parametrize(
    ("status", "match"), [(401, "refuses the API key"), (404, "check url and model"), (400, "HTTP 400")]
)
def test_what_cannot_pass_is_not_asked_again(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor, status: int, match: str
) -> None:
    server.answers((status, b"oops"))
    with pytest.raises(UserError, match=match):
        judge(tries=5)(images[:1])
    assert len(server.requests) == 1


def stall(handler: BaseHTTPRequestHandler, number: int) -> None:
    time.sleep(3)


def trickle_head(handler: BaseHTTPRequestHandler, number: int) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: 1\r\n" * 5:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.1)


def trickle_body(handler: BaseHTTPRequestHandler, number: int) -> None:
    content = b'{"choices": [{"message": {"content": "5"}}]}'
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for byte in content:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.1)


def hang_up(handler: BaseHTTPRequestHandler, number: int) -> None:
    handler.close_connection = True
    handler.connection.close()


@pytest.mark.parametrize("behaviour", [stall, trickle_head, trickle_body])
def test_a_stalling_server_costs_the_stated_time(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor, behaviour: Any
) -> None:
    server.behaviour = behaviour
    start = time.monotonic()
    with pytest.raises(UserError, match="gave no grade in 2 tries, the last: no answer within 0.4 s"):
        judge(timeout=0.4)(images[:2])
    assert time.monotonic() - start < 2 * 0.4 + 1.5  # of three seconds or more without a deadline


def test_a_server_that_hangs_up_or_is_not_there(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor
) -> None:
    server.behaviour = hang_up
    with pytest.raises(UserError, match="gave no grade in 2 tries"):
        judge()(images[:1])
    with pytest.raises(UserError, match="ConnectionRefusedError"):
        RemoteJudge("http://127.0.0.1:9/v1", "tiny", tries=2, backoff=0.01)(images[:1])


def test_the_budget_is_never_exceeded(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor
) -> None:
    reward = judge(budget=4, workers=2)
    with pytest.raises(UserError, match="6 images are to be graded and 4 of budget=4 requests are left"):
        reward(images)
    assert not server.requests
    reward(images[:3])
    reward(images[:3])
    assert len(server.requests) == 3
    server.answers((500, b"oops"))
    with pytest.raises(
        UserError, match="budget=4 requests are used up by retries, the last failure: HTTP 500"
    ):
        reward(images[3:4])
    assert len(server.requests) == reward.calls == 4


def test_an_error_stops_the_others_and_keeps_what_was_answered(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor
) -> None:
    server.answers("5", "5", (400, b"oops"))
    reward = judge(workers=1)
    with pytest.raises(UserError, match="HTTP 400"):
        reward(images)
    assert len(server.requests) <= 4
    assert reward(images[:2]).tolist() == [5.0, 5.0]
    assert len(server.requests) <= 4
