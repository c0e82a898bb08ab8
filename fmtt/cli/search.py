"""``fmtt search EXPORT --reward ... --out DIR``: samples of high reward, no weights, no law."""

from __future__ import annotations

from argparse import Namespace

import fmtt
from fmtt.cli.steering import SHOWN, Task


def run(args: Namespace) -> None:
    """Write samples, the best of each population, a grid with the best first, and summary.json.

    Under torchrun the processes share the candidates, and the first of them writes.
    """
    task = Task(args)
    total = (args.rounds + 1) * args.num_particles * args.num_populations
    with task.watched("searching", total) as reward:
        result = fmtt.search(
            task.model.map,
            reward,
            **task.keywords(args),
            keep=args.keep,
            rounds=args.rounds,
            selection=args.selection,
            temperature=args.temperature,
        )
    if not task.leads():
        return
    tensors = {"samples": result.samples, "rewards": result.rewards, "population": result.population}
    task.out.tensors("samples.safetensors", {**tensors, "best": result.best})
    best_first = result.samples[result.rewards.argsort(descending=True)[:SHOWN]]
    task.out.picture("samples.png", task.model.pictures(best_first), task.model.values)
    task.before_and_after(best_first, "after: search, best first")
    task.out.finish(
        args,
        {
            "base_law": result.base_law,
            "best_reward": result.best_rewards,
            "distinct_ancestors": result.distinct_ancestors,
            "mean_pairwise_distance": result.mean_pairwise_distance,
            "mean_reward": float(result.rewards.double().mean()),
            "reward_parts": task.parts(result.best),
            "reward_reports": task.reports(),
            "judge": task.judged(result.best),
            "cost": result.cost.as_dict(),
            "history": result.history._asdict(),
        },
    )
