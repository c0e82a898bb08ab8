"""What ``fmtt tilt`` and ``fmtt search`` share: arguments to keywords, the judge, pictures of particles."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

import fmtt
from fmtt import png
from fmtt.cli.judge import ClockJudge, judge
from fmtt.cli.model import Model, installed, rows
from fmtt.cli.output import Output
from fmtt.errors import UserError
from fmtt.rewards import build
from fmtt.types import Reward

SHOWN = 64
"""Most images of a samples.png."""
COMPARED = 16
"""Images per side of a before-and-after picture."""
DRAWN_POPULATIONS = 5


class Task:
    """A steering command's model, reward, judge and output folder, all checked before any work."""

    def __init__(self, args: Namespace) -> None:
        self.reward = build(args.reward)
        self.model = Model(args)
        check_reward(self.reward, self.model, args.reward)
        self.judge: ClockJudge | None = judge(args, self.model, self.reward)
        self.teacher = self.model.teacher(args.teacher) if args.teacher else None
        self.out = Output(args.out)

    def keywords(self, args: Namespace) -> dict[str, Any]:
        """The arguments that tilt and search have in common."""
        names = (
            "num_particles",
            "num_steps",
            "lookahead",
            "lookahead_steps",
            "noise",
            "guidance",
            "gradient",
        )
        more = ("kernel", "chunk_size", "max_reward_calls", "num_populations")
        return {
            **{name: getattr(args, name) for name in (*names, *more)},
            "cond": self.model.cond,
            "velocity": self.teacher.velocity if self.teacher else None,
            "generator": self.model.generator(),
        }

    def judged(self, samples: Tensor, weights: Tensor | None = None) -> dict[str, Any] | None:
        """What the judge says of the samples, or None without a judge."""
        return self.judge.summary(samples, weights) if self.judge else None

    def before_and_after(self, after: Tensor, title: str) -> None:
        """particles.png: samples of the few-step map beside steered ones, with the judge's readings."""
        if not installed("matplotlib") or not png.is_image(after.shape[1:]):
            return
        from fmtt.evaluation.pictures import particle_grids

        n = min(COMPARED, len(after))
        before = fmtt.sample(
            self.model.map, n, steps=4, cond=rows(self.model.cond, n), generator=self.model.generator(1)
        )
        groups = {"before: 4-step samples": before, title: after[:n]}
        captions = {name: self.judge.captions(x) for name, x in groups.items()} if self.judge else None
        columns = max(2, min(8, n // 2))
        figure = particle_grids(groups, captions, columns=columns, values=self.model.values)
        self.out.figure("particles.png", figure)


def check_reward(reward: Reward, model: Model, name: str) -> None:
    """Try the reward on one sample's shape.

    Raises:
        UserError: when it cannot score such samples.
    """
    probe = torch.zeros(1, *model.map.data_shape, device=model.device, dtype=model.dtype)
    try:
        reward(probe, model.cond)
    except (RuntimeError, ValueError, IndexError) as error:
        shape = " × ".join(map(str, model.map.data_shape))
        raise UserError(f"--reward {name} cannot score samples of shape {shape}: {error}") from error
