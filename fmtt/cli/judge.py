"""Who reads the samples of a steering command, beside the reward that was optimised."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from fmtt.cli.model import Model, rows
from fmtt.errors import UserError
from fmtt.rewards import Composite, build, clock, clock_judge, describe, parse
from fmtt.rewards.clock_reward import ClockReward
from fmtt.rewards.composite import parts_of
from fmtt.rewards.description import score
from fmtt.types import Reward

READERS = ("auto", "clock", "none")
"""What --judge takes besides a reward's specification."""


class Judge(Protocol):
    """Reads finished samples; nothing of it reaches the sampler."""

    def summary(self, samples: Tensor, weights: Tensor | None = None) -> dict[str, Any]:
        """What summary.json says of samples (B, *D), each of the weight (B,), or of the same."""
        ...

    def values(self, samples: Tensor) -> Tensor:
        """One number per sample (B,), float64 on the CPU; higher is better."""
        ...

    def captions(self, samples: Tensor) -> list[str]:
        """One short text per sample, for pictures."""
        ...


class ClockJudge:
    """Reads the samples by rendering match, which shares nothing with the reward.

    Args:
        target: the time to hit in minutes, or None where the reward names none.
        tolerance: in minutes.
    """

    def __init__(self, target: float | None, tolerance: float) -> None:
        self.target, self.tolerance = target, tolerance

    def summary(self, samples: Tensor, weights: Tensor | None = None) -> dict[str, Any]:
        """Weighted share of readable clocks and of hits."""
        reading = clock_judge.read(samples)
        w = _shares(samples, weights)
        found: dict[str, Any] = {"judge": "clock", "readable": float(w[reading.readable].sum())}
        if self.target is not None:
            found |= {"target": clock.format_time(self.target), "tolerance_minutes": self.tolerance}
            found["hit_rate"] = float(w[self._good(reading)].sum())
        return found

    def values(self, samples: Tensor) -> Tensor:
        """1 for a hit, or for a readable clock where no time is asked for, else 0."""
        return self._good(clock_judge.read(samples)).double()

    def _good(self, reading: clock_judge.Reading) -> Tensor:
        if self.target is None:
            return reading.readable
        error = clock.time_difference(reading.time, self.target).abs()
        return reading.readable & (error <= self.tolerance)

    def captions(self, samples: Tensor) -> list[str]:
        """The time read from each image, or ``?``."""
        return clock_judge.captions(samples)


class RewardJudge:
    """A held-out reward: its scores are reported and never optimised.

    Args:
        name: its specification.
        condition: as many rows of the model's conditions as there are samples.
    """

    def __init__(self, name: str, reward: Reward, condition: Callable[[int], Any]) -> None:
        self.name, self.reward, self.condition = name, reward, condition

    @torch.no_grad()
    def summary(self, samples: Tensor, weights: Tensor | None = None) -> dict[str, Any]:
        """Weighted mean and best score, of every part too where there are several."""
        found: dict[str, Any] = {"judge": self.name}
        if isinstance(self.reward, Composite):
            parts = self.reward.parts(samples, self.condition(len(samples)))
            total = torch.stack([self.reward.weights[name] * part for name, part in parts.items()]).sum(0)
            found |= {**statistics(total, weights), "parts": part_statistics(self.reward, parts, weights)}
        else:
            found |= statistics(self.values(samples), weights)
        reports = reports_of(self.reward, self.name)
        return {**found, "reports": reports} if reports else found

    @torch.no_grad()
    def values(self, samples: Tensor) -> Tensor:
        """The scores (B,)."""
        return score(self.reward, samples, self.condition(len(samples))).double().cpu()

    @torch.no_grad()
    def captions(self, samples: Tensor) -> list[str]:
        """The score of each sample; empty where a score is a call over the network."""
        if describe(self.reward).remote:
            return [""] * len(samples)
        return [f"{value:.3g}" for value in self.values(samples).tolist()]


def statistics(scores: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """Weighted mean, and the best, of scores (B,)."""
    scores = scores.detach().double().cpu()
    return {"mean": float((_shares(scores, weights) * scores).sum()), "best": float(scores.max())}


def part_statistics(
    reward: Composite, parts: Mapping[str, Tensor], weights: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """Every part's weight in the sum and the statistics of its own, unweighted scores."""
    return {
        name: {"weight": reward.weights[name], **statistics(values, weights)}
        for name, values in parts.items()
    }


def reports_of(reward: Reward, name: str) -> dict[str, Any]:
    """What parts report of themselves in an attribute ``report``, such as prompts they cut short, by name."""
    parts = parts_of(reward, name).items()
    return {key: report for key, part in parts if (report := getattr(part, "report", None)) is not None}


def judge(args: Namespace, model: Model, reward: Reward) -> Judge | None:
    """The judge that --judge asks for; ``auto`` is the clock's reader if a clock is rewarded, else none.

    Raises:
        UserError: when the samples are no clock images, or the judge is what is optimised.
    """
    name = args.judge
    clocks = [part for part in parts_of(reward, args.reward).values() if isinstance(part, ClockReward)]
    if name == "auto":
        name = "clock" if clocks else "none"
    if name == "none":
        return None
    if name != "clock":
        check_held_out(name, args.reward)
        return RewardJudge(name, model.sees(build(name, **model.context)), lambda n: rows(model.cond, n))
    shape = model.map.data_shape
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise UserError(f"--judge clock reads square RGB images, the export makes {shape}; give --judge none")
    return ClockJudge(clocks[0].target if clocks else None, args.tolerance)


def check_judge(text: str) -> None:
    """Check --judge as far as it can be without a model.

    Raises:
        UserError: when it is neither the name of a reader nor a reward's specification.
    """
    if text not in READERS:
        try:
            parse(text)
        except UserError as error:
            raise UserError(f"--judge takes {', '.join(READERS)} or a reward: {error}") from error


def check_held_out(name: str, optimised: str) -> None:
    """Check that no part of the judge is a part of the reward.

    Raises:
        UserError: naming the part.
    """
    parts = parse(optimised)
    for term in parse(name):
        if any(term.same_reward(part) for part in parts):
            raise UserError(
                f"--judge {name} is not held out: --reward optimises {term.text}, reported as it is"
            )


def _shares(samples: Tensor, weights: Tensor | None) -> Tensor:
    n = len(samples)
    return torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else weights.double().cpu()
