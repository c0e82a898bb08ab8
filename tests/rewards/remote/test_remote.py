"""Grades of the remote judge: which image they belong to, how they are asked for, and what is paid."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from fmtt.errors import UserError
from fmtt.rewards.remote import RemoteJudge


def decoded(request: dict[str, Any]) -> torch.Tensor:
    """The image (3, 8, 8), uint8, in a request: our PNGs hold one compressed chunk without filters."""
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    content = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    start = content.index(b"IDAT") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big")
    lines = torch.frombuffer(bytearray(zlib.decompress(content[start : start + size])), dtype=torch.uint8)
    return lines.reshape(8, 25)[:, 1:].reshape(8, 8, 3).permute(2, 0, 1)


def test_each_image_gets_its_own_grade(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor
) -> None:
    """The server grades by the image itself, so that grades in a wrong order would be seen."""

    def by_brightness(handler: BaseHTTPRequestHandler, number: int) -> None:
        time.sleep(0.01 * (7 - number))
        server.send(handler, f" {decoded(server.requests[number - 1]).double().mean() / 25.5:.6f}\n")

    server.behaviour = by_brightness
    grades = judge(workers=1)(images)
    levels = ((images + 1) * 127.5).round().double()
    assert torch.allclose(grades.double(), levels.mean((1, 2, 3)) / 25.5, atol=1e-5)
    request = server.requests[0]
    assert request["path"] == "/v1/chat/completions" and request["model"] == "tiny"
    assert "from 0 (worst) to 10 (best)" in request["messages"][0]["content"][1]["text"]


def test_the_description_and_the_key(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    reward = judge(key_env="JUDGE_KEY", low=1.0, high=5.0)
    assert reward(images[:1]).tolist() == [5.0]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert reward.differentiable is False and reward.description.remote
    assert reward.description.value_range == (1.0, 5.0)


def test_requests_run_together_but_no_more_than_asked(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor
) -> None:
    def slow(handler: BaseHTTPRequestHandler, number: int) -> None:
        time.sleep(0.1)
        server.send(handler, "5")

    server.behaviour = slow
    judge(workers=3, timeout=5.0)(images)
    assert server.most_together == 3


def test_answers_are_paid_for_once(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor, tmp_path: Path
) -> None:
    cache = str(tmp_path / "answers")
    x = torch.cat([images, images[:2]])
    first = judge(cache=cache)(x)
    assert len(server.requests) == 6
    assert torch.equal(judge(cache=cache)(x), first)
    assert len(server.requests) == 6
    judge(cache=cache, question="How red is it?")(images[:1])
    judge(cache=cache, high=20.0)(images[:1])
    assert len(server.requests) == 8
    assert not list(tmp_path.rglob("*.tmp"))
    file = next((tmp_path / "answers").rglob("*.json"))
    file.write_text('{"score": "NaN"}')
    with pytest.raises(UserError, match="is not a cached score; delete it"):
        for question in ("How good is this image?", "How red is it?"):
            judge(cache=cache, question=question)(images)
        judge(cache=cache, high=20.0)(images)


def test_a_reply_that_passes_is_asked_again(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor
) -> None:
    server.answers((500, b"oops"), (429, b"oops"), (503, b"oops"), (200, b"<html>"), "good", "11", "7.5")
    assert judge(tries=7)(images[:1]).tolist() == [7.5]


def test_retry_after_is_heeded(server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor) -> None:
    server.answers((429, b"busy"), "5", Retry_After="0.4")
    start = time.monotonic()
    assert judge()(images[:1]).tolist() == [5.0]
    assert time.monotonic() - start > 0.4


def test_each_sample_is_asked_about_its_own_prompt(
    server: Any, judge: Callable[..., RemoteJudge], images: torch.Tensor
) -> None:
    reward = judge(question="Does it show {prompt}?", prompt=["a cat", "a clock"], workers=1)
    reward(images[:2], {"prompt_index": torch.tensor([1, 0])})
    asked = [request["messages"][0]["content"][1]["text"] for request in server.requests]
    assert [text.split("\n")[0] for text in asked] == ["Does it show a clock?", "Does it show a cat?"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"budget": 0}, "budget must be at least 1"),
        ({"timeout": 0.0}, "timeout must be positive"),
        ({"low": 3.0, "high": 2.0}, "low must be below high"),
        ({"question": "Is it {prompt}?"}, "no prompt=TEXT is given"),
    ],
)
def test_settings(judge: Callable[..., RemoteJudge], settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        judge(**settings)


def test_addresses_and_samples(judge: Callable[..., RemoteJudge], images: torch.Tensor) -> None:
    for url in ("localhost:8000", "ftp://x/v1", "http://"):
        with pytest.raises(UserError, match="url must be an http or https address"):
            RemoteJudge(url, "tiny")
    with pytest.raises(UserError, match="finite images"):
        judge()(images * float("nan"))
