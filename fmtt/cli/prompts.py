"""``fmtt prompts MODEL SUITE --out DIR``: the images of a prompt suite, as its own evaluator takes them."""

from __future__ import annotations

import json
import time
import zlib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmtt import png
from fmtt.cli import same_folder
from fmtt.cli.judge import check_held_out
from fmtt.cli.model import device_named, need_extra, need_pipeline
from fmtt.cli.output import Output, plain
from fmtt.cli.progress import Progress
from fmtt.errors import UserError
from fmtt.evaluation import prompt_suite
from fmtt.evaluation.prompt_suite import Item, Suite
from fmtt.files import write_json
from fmtt.rewards import Described, build, describe, parse
from fmtt.rewards.description import score
from fmtt.types import Cond, Reward

FIXED = (
    *("model", "suite", "layout", "method", "reward", "judge", "num_images", "num_particles", "steps"),
    *("keep", "rounds", "height", "width", "guidance_scale", "seed", "dtype"),
)
FILES = ("model", "suite")
"""What must not change between runs that share a folder: arguments, and what is in those that name files."""
SETTINGS = "settings.json"
COSTS = ("forwards", "backwards", "reward_calls", "decodes")


class Made(NamedTuple):
    """Images (K, 3, H, W) in [0, 1] of one prompt, their rewards (K,) and what they cost together."""

    images: Tensor
    rewards: Tensor | None
    cost: dict[str, float]


class OfPrompts(Described):
    """A reward that holds the whole suite's prompts, as the images of some of them see it.

    Args:
        places: (P,) the place in the suite of each prompt of a call.
    """

    def __init__(self, reward: Reward, places: Tensor) -> None:
        self.reward, self.places, self.description = reward, places, describe(reward)

    def __call__(self, x1: Tensor, cond: Cond | None = None) -> Tensor:
        given = cond or {}
        index = given.get("prompt_index")
        rows = torch.zeros(len(x1), dtype=torch.long) if index is None else index.cpu().long()
        return score(self.reward, x1, {**given, "prompt_index": self.places[rows]})


def run(args: Namespace) -> None:
    """Make what is not there yet of images/, then write summary.json."""
    need_extra("diffusers", "transformers", extra="diffusers")
    if (args.reward is None) != (args.method == "sample"):
        raise UserError("--method sample takes no --reward, every other method needs one")
    for spec in filter(None, (args.reward, args.judge)):
        parse(spec)
    if args.reward and args.judge:
        check_held_out(args.judge, args.reward)
    whole = prompt_suite.read(args.suite, args.layout)
    number, parts = args.part
    suite = prompt_suite.part(whole, number, parts)
    out = Output(args.out)
    need_pipeline(args.model)
    settings = same_folder.settings(args, FIXED, FILES)
    if (args.out / SETTINGS).is_file():
        same_folder.stored(args.out / SETTINGS, settings, args.out, "images made")
    todo = [item for item in suite.items if not _finished(args, suite, item)]
    if len(todo) < len(suite.items):
        print(f"{len(suite.items) - len(todo)} of {len(suite.items)} prompts are there already")
    if todo:
        _make_all(args, whole, suite, todo, settings)
    records = [json.loads(_record(args, item).read_text()) for item in suite.items]
    found = _means(records, args.num_images)
    for name, value in found.items():
        print(f"{name}: {value:.4g}")
    print(f"images for the evaluator of {suite.layout}: {args.out / 'images'}")
    out.finish(args, {"layout": suite.layout, "prompts": len(records), "per_image": found})


def _make_all(
    args: Namespace, whole: Suite, suite: Suite, todo: Sequence[Item], settings: dict[str, Any]
) -> None:
    from fmtt.pipeline import FMTTPipeline

    device = device_named(args.device)
    pipeline = FMTTPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(device)
    context: dict[str, Any] = {"value_range": (0.0, 1.0), "device": str(device)}
    context["prompt"] = [item.prompt for item in whole.items]
    reward = build(args.reward, **context) if args.reward else None
    judge = build(args.judge, **context) if args.judge else None
    places = {item.index: k for k, item in enumerate(whole.items)}
    with Progress("making images", len(suite.items)) as bar:
        bar.advance(len(suite.items) - len(todo))
        for item in todo:
            here = torch.full((args.num_images,), places[item.index])
            start = time.perf_counter()
            made = make(args, pipeline, item, None if reward is None else OfPrompts(reward, here))
            if item is todo[0]:  # not before the settings are known to work
                write_json(args.out / SETTINGS, {"settings": settings})
            record: dict[str, Any] = {"index": item.index, "prompt": item.prompt, **made.cost}
            record["seconds"] = time.perf_counter() - start
            if made.rewards is not None:
                record["reward"] = made.rewards.tolist()
            if judge is not None:
                rows = {"prompt_index": torch.arange(args.num_images)}
                with torch.no_grad():
                    record["judge"] = OfPrompts(judge, here)(made.images, rows).tolist()
            prompt_suite.write_metadata(suite, args.out / "images", item)
            targets = prompt_suite.images(suite, args.out / "images", item, args.num_images)
            for target, image in zip(targets, made.images, strict=True):
                png.write(target, image.float().cpu())
            write_json(_record(args, item), plain(record))  # last: it says that the prompt is done
            bar.advance()


def make(args: Namespace, pipeline: Any, item: Item, reward: Reward | None) -> Made:
    """K images of one prompt, each the best of a run of its own.

    The same arguments and prompt give the same images, whatever ran before.
    """
    K = args.num_images
    generator = torch.Generator(pipeline._execution_device)
    generator.manual_seed(zlib.crc32(f"{args.seed}/{item.index}".encode()))
    options: dict[str, Any] = {"generator": generator, "output_type": "pt", "num_inference_steps": args.steps}
    options |= {"height": args.height, "width": args.width, "guidance_scale": args.guidance_scale}
    options |= {"chunk_size": args.chunk_size}
    if args.method in ("sample", "best_of_n"):
        options["num_images_per_prompt"] = 1 if reward is None else args.num_particles
    else:
        options |= {"reward": reward, "mode": args.method, "num_particles": args.num_particles}
        if args.method == "search":
            options |= {"keep": args.keep, "rounds": args.rounds, "kernel": "renoise"}
        else:
            options |= {"weights": "path", "kernel": "renoise"}
    made = pipeline([item.prompt] * K, **options)
    rewards = made.rewards
    if args.method == "best_of_n" and reward is not None:
        rows = {"prompt_index": torch.arange(K).repeat_interleave(args.num_particles)}
        with torch.no_grad():
            rewards = reward(made.images, rows)
        made.cost.reward_calls += len(rows["prompt_index"])
    cost = {name: float(getattr(made.cost, name)) for name in COSTS}
    if rewards is None:
        return Made(made.images, None, cost)
    table = rewards.reshape(K, -1)
    best = table.argmax(1) + torch.arange(K, device=table.device) * table.shape[1]
    return Made(made.images[best.to(made.images.device)], rewards[best], cost)


def _record(args: Namespace, item: Item) -> Path:
    return args.out / "records" / f"{item.index:05d}.json"


def _finished(args: Namespace, suite: Suite, item: Item) -> bool:
    wanted = prompt_suite.images(suite, args.out / "images", item, args.num_images)
    return _record(args, item).is_file() and all(path.is_file() for path in wanted)


def _means(records: Sequence[dict[str, Any]], num_images: int) -> dict[str, float]:
    """Means per image over all prompts."""
    count = num_images * len(records)
    found = {name: sum(r[name] for r in records) / count for name in (*COSTS, "seconds")}
    for name in ("reward", "judge"):
        if all(name in r for r in records):
            found[name] = sum(sum(r[name]) for r in records) / count
    return found
