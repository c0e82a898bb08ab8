"""``fmtt tilt EXPORT --reward ... --out DIR``: weighted samples of the tilted law."""

from __future__ import annotations

from argparse import Namespace

import torch

import fmtt
from fmtt.cli.model import installed
from fmtt.cli.steering import DRAWN_POPULATIONS, SHOWN, Task
from fmtt.steering import smc
from fmtt.steering.result import TiltResult


def run(args: Namespace) -> None:
    """Write samples with weights, a grid of resampled ones, curves, and summary.json.

    Under torchrun the processes share the particles, and the first of them writes.
    """
    # Exact weights take the start for the model's own law at that time, which noised samples do not have.
    given = args.init and args.init_is == "clean"
    args.weights = args.weights or ("path" if given else "exact")
    task = Task(args)
    pairs = 2 * args.num_probes if args.gradient == "zeroth" else 0
    looks = (1 + pairs) * -(-args.num_steps // args.gradient_every) + 1
    total = looks * args.num_particles * args.num_populations
    with task.watched("tilting", total) as reward:
        result = fmtt.tilt(
            task.model.map,
            reward,
            **task.keywords(args),
            weights=args.weights,
            chi=args.chi,
            gradient_every=args.gradient_every,
            ess_threshold=args.ess_threshold,
            resample=args.resample,
            resample_at=args.resample_at,
            resample_share=args.resample_share,
            final_resample=args.final_resample,
        )
    if not task.leads():
        return
    log_weights = result.pooled_log_weights
    weights = torch.softmax(log_weights, 0)
    order = torch.arange(min(SHOWN, len(result.samples)), device=log_weights.device)
    index = smc.systematic(log_weights[None], task.model.generator(2), len(order))[0]
    resampled = result.samples[index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]]
    tensors = {"samples": result.samples, "log_weights": result.log_weights, "rewards": result.rewards}
    task.out.tensors("samples.safetensors", {**tensors, "population": result.population})
    task.out.picture("samples.png", task.model.pictures(resampled), task.model.values)
    task.before_and_after(resampled, "after: tilted, resampled")
    _curves(task, result)
    history = result.history
    print(said(result))
    task.out.finish(
        args,
        {
            "base_law": result.base_law,
            "log_z": result.log_z,
            "log_z_pooled": result.pooled_log_z._asdict(),
            "ess": result.ess,
            "distinct_ancestors": result.distinct_ancestors,
            "effective_samples": float(1 / weights.square().sum()),
            "mean_reward": float((weights * result.rewards.double()).sum()),
            "best_reward": float(result.rewards.max()),
            "reward_parts": task.parts(result.samples, weights),
            "reward_reports": task.reports(),
            "judge": task.judged(result.samples, weights),
            "thermodynamic_length": history.thermodynamic_length[-1],
            "resamplings": history.resampled.sum(0),
            "cost": result.cost.as_dict(),
            "history": {name: value for name, value in history._asdict().items() if name != "ancestors"},
        },
    )


def said(result: TiltResult) -> str:
    """ESS and ancestors in a line: weights can be even among particles that all descend from one."""
    P = result.num_populations
    ess, ancestors = (100 * result.ess).reshape(P).tolist(), result.distinct_ancestors.reshape(P).tolist()
    each = f" in each of {P} populations" if P > 1 else ""
    plural = "s" if max(ancestors) > 1 else ""
    particles = f"{len(result.samples) // P} particles{each}"
    return f"ESS {_span(ess)} % of {particles}, from {_span(ancestors)} distinct ancestor{plural}"


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _curves(task: Task, result: TiltResult) -> None:
    """curves.png: ESS, log Z and thermodynamic length of the first few populations."""
    if not installed("matplotlib"):
        return
    from fmtt.evaluation.figures import tilt_curves

    history, runs = result.history, {}
    for p in range(min(result.num_populations, DRAWN_POPULATIONS)):
        name = f"population {p + 1}" if result.num_populations > 1 else "fmtt"
        columns = ("ess", "log_z", "thermodynamic_length", "resampled")
        runs[name] = {key: getattr(history, key)[:, p].tolist() for key in columns}
        runs[name]["t"] = history.t.tolist()
    task.out.figure("curves.png", tilt_curves(runs))
