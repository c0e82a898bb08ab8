"""What ``fmtt tilt`` and ``fmtt search`` share: arguments to keywords, the judge, pictures of particles."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import fmtt
from fmtt import png
from fmtt.cli.judge import Judge, RewardJudge, check_judge, judge, part_statistics, reports_of
from fmtt.cli.model import Model, installed, rows
from fmtt.cli.output import Output
from fmtt.cli.progress import Progress, WatchedReward
from fmtt.errors import UserError
from fmtt.rewards import Composite, build, describe, parse
from fmtt.steering import processes
from fmtt.types import Reward

SHOWN = 64
"""Most images of a samples.png."""
COMPARED = 16
"""Images per side of a before-and-after picture."""
DRAWN_POPULATIONS = 5


class Task:
    """A steering command's model, reward, judge and output folder, all checked before any work."""

    def __init__(self, args: Namespace) -> None:
        parse(args.reward)  # misspelt rewards are found before the model is loaded
        check_judge(args.judge)
        self.model = Model(args)
        self.reward_name = args.reward
        self.plain = build(args.reward, **self.model.context)
        self.reward = self.model.sees(self.plain)
        check_reward(self.reward, self.model, args.reward)
        self.judge: Judge | None = judge(args, self.model, self.plain)
        if isinstance(self.judge, RewardJudge):
            check_reward(self.judge.reward, self.model, args.judge, "--judge")
        self.teacher = self.model.teacher(args.teacher) if args.teacher else None
        self.lookahead_map = None
        if args.lookahead_map:
            self.lookahead_map = self.model.teacher(args.lookahead_map, "--lookahead-map")
        if args.t_start and not args.init:
            raise UserError(f"--t-start {args.t_start:g} needs --init: what is there at that time")
        self.init = initial(args.init, self.model) if args.init else None
        self.out = Output(args.out)
        self.ranks = processes.find(device=self.model.device)

    def keywords(self, args: Namespace) -> dict[str, Any]:
        """The arguments that tilt and search have in common."""
        names = (
            "num_particles",
            "num_steps",
            "lookahead",
            "lookahead_steps",
            "lookahead_tol",
            "checkpoint",
            "schedule",
            "times",
            "noise",
            "guidance",
            "step_size",
            "gradient",
            "num_probes",
            "probe_scale",
            "t_start",
        )
        more = ("kernel", "chunk_size", "max_reward_calls", "num_populations")
        return {
            **{name: getattr(args, name) for name in (*names, *more)},
            "lookahead_map": self.lookahead_map,
            "x_init": self.init,
            "x_init_is": "state" if self.init is None else args.init_is,
            "cond": self.model.cond,
            "velocity": self.teacher.velocity if self.teacher else None,
            "generator": self.model.generator(),
        }

    @contextmanager
    def watched(self, label: str, total: int) -> Iterator[Reward]:
        """The reward under a progress bar, which the first of several processes shows."""
        with Progress(label, total // self.ranks.size, quiet=self.ranks.rank > 0) as bar:
            yield WatchedReward(self.reward, bar)

    def leads(self) -> bool:
        """Part from the other processes, once the run is over; True in the one that writes."""
        processes.part()
        return self.ranks.rank == 0

    def judged(self, samples: Tensor, weights: Tensor | None = None) -> dict[str, Any] | None:
        """What the judge says of the samples, or None without a judge."""
        return self.judge.summary(samples, weights) if self.judge else None

    @torch.no_grad()
    def parts(self, samples: Tensor, weights: Tensor | None = None) -> dict[str, Any] | None:
        """What each part of a composite reward says of the samples, or None for a reward of one part."""
        if not isinstance(self.plain, Composite):
            return None
        scores = self.plain.parts(self.model.pictures(samples), rows(self.model.cond, len(samples)))
        return part_statistics(self.plain, scores, weights)

    def reports(self) -> dict[str, Any]:
        """What the reward's parts report of themselves."""
        return reports_of(self.plain, self.reward_name)

    def before_and_after(self, after: Tensor, title: str) -> None:
        """particles.png: samples of the few-step map beside steered ones, with the judge's readings."""
        if not installed("matplotlib") or not (self.model.text or png.is_image(after.shape[1:])):
            return
        from fmtt.evaluation.pictures import particle_grids

        n = min(COMPARED, len(after))
        before = fmtt.sample(
            self.model.map, n, steps=4, cond=rows(self.model.cond, n), generator=self.model.generator(1)
        )
        groups = {"before: 4-step samples": before, title: after[:n]}
        captions = {name: self.judge.captions(x) for name, x in groups.items()} if self.judge else None
        groups = {name: self.model.pictures(x) for name, x in groups.items()}
        columns = max(2, min(8, n // 2))
        figure = particle_grids(groups, captions, columns=columns, values=self.model.values)
        self.out.figure("particles.png", figure)


def initial(path: Path, model: Model) -> Tensor:
    """The samples of a safetensors file: its tensor ``samples``, or the only one that it holds.

    Raises:
        UserError: when the file cannot be read or holds no samples of the model's shape.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--init {path} is not a safetensors file that can be read: {error}") from error
    found = tensors.get("samples", next(iter(tensors.values())) if len(tensors) == 1 else None)
    shape = tuple(model.map.data_shape)
    if found is None or tuple(found.shape[1:]) != shape:
        raise UserError(f"--init {path} needs a tensor 'samples' with rows of shape {shape}")
    return found.to(device=model.device, dtype=model.dtype)


def check_reward(reward: Reward, model: Model, name: str, flag: str = "--reward") -> None:
    """Try the reward on one sample's shape, unless that is a call to a server.

    Raises:
        UserError: when it cannot score such samples.
    """
    if describe(reward).remote:
        return
    probe = torch.zeros(1, *model.map.data_shape, device=model.device, dtype=model.dtype)
    try:
        reward(probe, model.cond)
    except (RuntimeError, ValueError, IndexError) as error:
        shape = " × ".join(map(str, model.map.data_shape))
        raise UserError(f"{flag} {name} cannot score samples of shape {shape}: {error}") from error
