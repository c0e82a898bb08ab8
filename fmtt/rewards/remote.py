"""A model behind an OpenAI-compatible endpoint that grades images: a judge, or a reward without gradient.

Every image is sent as PNG with one question; the reply must be a number in the stated range and nothing
else. What does not arrive in time, or is no such number, is asked again a bounded number of times and is
then an error: a grade is never made up.
"""

from __future__ import annotations

import base64
import json
import math
import os
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.png import DEFAULT_RANGE, encode
from fmtt.rewards.description import Described, Description
from fmtt.rewards.learned.prompts import Prompts
from fmtt.rewards.picture import checked_range, to_unit
from fmtt.rewards.remote_cache import Cache, key_of
from fmtt.rewards.remote_client import Endpoint, Failure, check_url
from fmtt.types import Cond

PROMPT = "{prompt}"
LONGEST_WAIT = 60.0
"""Seconds that a server's own wish to be left alone is granted at most."""


class RemoteJudge(Described):
    """Grades of images by a model behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, hosted APIs).

    A call of the reward takes at most ``tries`` times ``timeout`` for each round of ``workers`` images, and
    the waits between tries. Equal images are asked about once.

    Args:
        url: of the API, for instance http://localhost:8000/v1.
        model: the name that the server knows the model by.
        question: what is asked about the image; ``{prompt}`` stands for the sample's prompt.
        prompt: what ``{prompt}`` stands for: one; several, or ``@FILE`` with one per line, and then
            ``cond["prompt_index"]`` says which belongs to a sample.
        low, high: the range of grades that the model is asked for.
        budget: most requests that this object ever sends, retries included.
        cache: folder of answers; "" keeps them in memory alone.
        key_env: environment variable that holds the API key, if the server wants one.
        timeout: seconds of one try, from connecting to the last byte.
        tries: most tries of one question.
        backoff: seconds before the second try, doubled for each further one.
        workers: requests at the same time.
        value_range: the model values of black and white.

    Raises:
        UserError: when an argument makes no sense.
    """

    description = Description("grade by a remote model", False, space="pixels", remote=True)

    def __init__(
        self,
        url: str,
        model: str,
        question: str = "How good is this image?",
        prompt: str | Sequence[str] = "",
        low: float = 0.0,
        high: float = 10.0,
        budget: int = 1000,
        cache: str = "",
        key_env: str = "OPENAI_API_KEY",
        timeout: float = 30.0,
        tries: int = 3,
        backoff: float = 1.0,
        workers: int = 4,
        value_range: tuple[float, float] = DEFAULT_RANGE,
    ) -> None:
        for name, count in (("budget", budget), ("tries", tries), ("workers", workers)):
            if count < 1:
                raise UserError(f"{name} must be at least 1, got {count}")
        if not (0 < timeout < math.inf and 0 <= backoff < math.inf):
            raise UserError(f"timeout must be positive and backoff not negative, got {timeout} and {backoff}")
        if not (low < high and math.isfinite(high - low)):
            raise UserError(f"low must be below high, got {low:g} and {high:g}")
        asks_prompt = PROMPT in question
        if not question.strip() or (asks_prompt and not prompt):
            raise UserError("question is empty, or has {prompt} in it and no prompt=TEXT is given")
        self.endpoint = Endpoint(check_url(url), os.environ.get(key_env, ""), float(timeout))
        self.model, self.question, self.low, self.high = model, question, float(low), float(high)
        self.prompts = Prompts(prompt) if asks_prompt else None
        self.budget, self.tries, self.backoff, self.workers = budget, tries, float(backoff), workers
        self.cache = Cache(cache)
        self.value_range = checked_range(value_range)
        self.calls = 0
        self._lock = threading.Lock()
        self.description = replace(
            type(self).description, value_range=(self.low, self.high), uses_prompt=asks_prompt
        )

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        """Grades (B,) in [low, high] of images (B, 1 or 3, H, W).

        Raises:
            UserError: when the budget does not suffice, the server cannot be used, or it keeps answering
                something else than a grade.
        """
        rgb = to_unit(x1.detach().float(), self.value_range).clamp(0, 1)
        if rgb.shape[1] not in (1, 3) or not bool(rgb.isfinite().all()):
            raise UserError("the remote judge grades finite images of 1 or 3 channels; decode samples first")
        images = (rgb * 255).round().to(torch.uint8).cpu().expand(-1, 3, -1, -1)
        texts = self._texts(cond, len(images))
        keys = [
            key_of(image, self.endpoint.url, self.model, self._ask(text))
            for image, text in zip(images, texts, strict=True)
        ]
        found = {key: self.cache.get(key) for key in keys}
        self._grade({k: (i, t) for k, i, t in zip(keys, images, texts, strict=True) if found[k] is None})
        grades = [self.cache.get(key) for key in keys]
        return torch.tensor(grades, dtype=torch.promote_types(x1.dtype, torch.float32), device=x1.device)

    def __repr__(self) -> str:
        return f"remote:url={self.endpoint.url},model={self.model}"

    def _texts(self, cond: Cond | None, batch: int) -> list[str]:
        if self.prompts is None:
            return [self.question] * batch
        index = self.prompts.index(cond, batch).tolist()
        return [self.question.replace(PROMPT, self.prompts.texts[k]) for k in index]

    def _ask(self, text: str) -> str:
        return (
            f"{text}\nGrade it with one number from {self.low:g} (worst) to {self.high:g} (best). "
            "Reply with that number and nothing else."
        )

    def _grade(self, waiting: dict[str, tuple[Tensor, str]]) -> None:
        """Ask about every image that is waiting, and keep each grade as it comes."""
        left = self.budget - self.calls
        if len(waiting) > left:
            raise UserError(
                f"{len(waiting)} images are to be graded and {left} of budget={self.budget} requests are "
                "left: raise budget, or use fewer samples"
            )
        stop = threading.Event()
        with ThreadPoolExecutor(self.workers) as pool:
            jobs = [pool.submit(self._one, key, *asked, stop) for key, asked in waiting.items()]
            try:
                for job in as_completed(jobs):
                    job.result()
            finally:  # after an error the questions that wait are dropped, and those under way end in time
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _one(self, key: str, image: Tensor, text: str, stop: threading.Event) -> None:
        body = self._body(image, text)
        reason = ""
        for attempt in range(self.tries):
            self._spend(reason)
            try:
                self.cache.put(key, self._parsed(self.endpoint.post("/chat/completions", body)))
                return
            except Failure as failure:
                reason = str(failure)
                wait = (
                    self.backoff * 2**attempt * (0.75 + random.random() / 2)
                )  # so that workers do not march in step
                if attempt + 1 < self.tries and stop.wait(max(wait, min(failure.wait, LONGEST_WAIT))):
                    return
        raise UserError(f"{self.endpoint.url} gave no grade in {self.tries} tries, the last: {reason}")

    def _spend(self, reason: str) -> None:
        with self._lock:
            if self.calls >= self.budget:
                last = f", the last failure: {reason}" if reason else ""
                raise UserError(f"budget={self.budget} requests are used up by retries{last}; raise budget")
            self.calls += 1

    def _body(self, image: Tensor, text: str) -> dict[str, Any]:
        png = base64.b64encode(encode(image.float() / 255)).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}},
            {"type": "text", "text": self._ask(text)},
        ]
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 16}

    def _parsed(self, reply: Any) -> float:
        """The grade in a reply.

        Raises:
            Failure: when there is none, or it is out of range.
        """
        try:
            said = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise Failure(f"the reply is no chat completion: {json.dumps(reply)[:200]}") from error
        try:
            grade = float(said) if isinstance(said, str) else math.nan
        except ValueError as error:
            raise Failure(f"the reply is not a number: {said[:100]!r}") from error
        if not self.low <= grade <= self.high:  # NaN too
            raise Failure(f"the grade {said!r:.100} is not from {self.low:g} to {self.high:g}")
        return grade
