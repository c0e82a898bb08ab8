"""Tilt an unconditional model of 8 x 8 digits towards zeros, by every look-ahead. ``make bench-digits``.

Trains the velocity model, the map and the classifier from configs/digits, which takes a few minutes on one
core; finished stages under OUT are not done again. The truth is importance sampling: the model's own samples
weighted by e^r, r = log p(0 | x). Prints the table, writes OUT/summary.json.

The map's look-ahead meets each of the others population by population, from the same noise, by a sign test,
since a few populations carry most of a mean of weights: "won" or "lost" where it is nearer more or less often
than chance allows by three standard deviations, else "level". Exit status 1 if it does not win total
discrepancy and thermodynamic length, which the paper reports, or loses a distance to the truth. Exact weights
are unbiased with every look-ahead, so there a tie is no defect.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import data.digits
import fmtt
from data import digits_classifier
from fmtt.baselines.best_of_n import best_of_n
from fmtt.errors import UserError
from fmtt.evaluation import distances
from fmtt.files import make_writable, write_json
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.rewards.classifier import Classifier
from train.config import load_config, to_yaml
from train.demo.stages import Stages, fingerprint
from train.export import export_run
from train.run import train

CONFIGS = Path(__file__).parents[2] / "configs" / "digits"
LABEL = 0
STEPS = 50
LOOKAHEADS = ("none", "denoiser", "flow_map")
"""In the paper's order, worst first."""
BANDWIDTH = 3.0
"""Of the kernel: about half the distance between two digits."""


@dataclass(frozen=True)
class Size:
    """How much is spent.

    Attributes:
        training: overrides of both configurations, such as a smaller number of steps.
        base: samples of the model that make the truth.
        particles, populations: of a tilt.
        seed: of the tilts.
    """

    training: tuple[str, ...] = ()
    base: int = 10_000
    particles: int = 64
    populations: int = 512
    seed: int = 0


class Truth:
    """The tilted law by importance sampling from the law of the sampler's unguided steps."""

    def __init__(self, flow_map: NeuralFlowMap, reward: Classifier, count: int) -> None:
        drawn = best_of_n(
            flow_map,
            reward,
            num_samples=count,
            steps=STEPS,
            sampler="velocity",
            noise=1.0,
            chunk_size=1024,
            generator=torch.Generator().manual_seed(1),
        )
        self.samples, self.rewards = drawn.samples, drawn.rewards.double()
        self.weights = torch.softmax(self.rewards, 0)
        self.log_z = float(torch.logsumexp(self.rewards, 0)) - math.log(count)
        self.effective = float(1 / self.weights.square().sum())

    def mean(self, values: Tensor) -> float:
        """The tilted mean of values (M,) at ``samples``."""
        return float((self.weights * values.double()).sum())

    def draws(self, count: int, seed: int) -> Tensor:
        """Samples of the tilted law (count, 64), with replacement."""
        generator = torch.Generator().manual_seed(seed)
        return self.samples[torch.multinomial(self.weights, count, True, generator=generator)].flatten(1)


def trained(out: Path, size: Size) -> tuple[NeuralFlowMap, Classifier]:
    """The map and the reward, trained under ``out`` unless they are there."""
    stages, inputs = Stages(out), [Path(data.digits.__file__)]
    for number, (name, stage) in enumerate((("teacher", "pretrain"), ("map", "distill")), 1):
        places = [f"run_dir={out / name}"] + [f"teacher={out / 'teacher-export'}"] * (stage == "distill")
        config = load_config(CONFIGS / f"{name}.yaml", [*size.training, *places])
        made = fingerprint(*inputs, to_yaml(config))
        title = f"{number}/3 {name}: {stage}"

        def work(config=config, stage=stage, name=name) -> dict[str, Any]:
            train(config, stage)
            export_run(out / name, out / f"{name}-export")
            return {"steps": config.max_steps}

        stages.run(name, title, made, work, resumable=True, product=out / f"{name}-export" / "config.json")
        inputs = [out / f"{name}-export"]
    file = out / "classifier" / "classifier.safetensors"

    def fit() -> dict[str, Any]:
        digits_classifier.write(file, digits_classifier.halves()[0])
        return {}

    made = fingerprint(Path(digits_classifier.__file__), Path(data.digits.__file__))
    stages.run("classifier", "3/3 classifier", made, fit, product=file)
    return fmtt.load(out / "map-export"), Classifier(str(file), LABEL)


def column(values: Tensor) -> list[float]:
    """[mean, standard error] over populations (P,)."""
    values = values.double()
    return [float(values.mean()), float(values.std()) / math.sqrt(len(values))]


def rms(errors: Tensor) -> list[float]:
    """[root mean square, standard error] of errors (P,)."""
    square, deviation = column(errors.square())
    return [math.sqrt(square), deviation / (2 * math.sqrt(square)) if square else 0.0]


def measure(
    flow_map: NeuralFlowMap, reward: Classifier, truth: Truth, lookahead: str, weights: str, size: Size
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One look-ahead: what it found, how far that is from the truth, and what is compared, by population."""
    P, N = size.populations, size.particles
    result = fmtt.tilt(
        flow_map,
        reward,
        num_particles=N,
        num_populations=P,
        num_steps=STEPS,
        lookahead=lookahead,
        weights=weights,
        chunk_size=1024,
        generator=torch.Generator().manual_seed(size.seed),
    )
    judge = digits_classifier.judge(digits_classifier.halves()[1])
    hit = (judge(result.samples) == LABEL).double()
    accuracy = result.expect(lambda _: hit).value
    drawn = result.resample(N, torch.Generator().manual_seed(2)).reshape(P, N, -1)
    against = truth.draws(max(2 * N, 1000), 3)
    own = distances.self_similarity(against, BANDWIDTH)
    errors = result.log_z - truth.log_z
    squared = torch.stack([distances.mmd(x, against, BANDWIDTH, own=own) for x in drawn])
    known = truth.mean((judge(truth.samples) == LABEL).double())
    row = {
        "lookahead": lookahead,
        "weights": weights,
        "accuracy": column(accuracy),
        "guided_accuracy": column(hit.reshape(P, N).mean(1)),
        "accuracy_error": rms(accuracy - known),
        "reward_error": rms(result.expect(reward).value - truth.mean(truth.rewards)),
        "log_z": column(result.log_z),
        "log_z_error": rms(errors),
        "mmd": column(squared),
        "ess": column(result.ess),
        "resamples": column(result.history.resampled.double().sum(0)),
        "discrepancy": column(result.history.total_discrepancy[-1]),
        "length": column(result.history.thermodynamic_length[-1]),
    }
    by_population = {
        "discrepancy": result.history.total_discrepancy[-1],
        "length": result.history.thermodynamic_length[-1],
        "log_z_error": errors.square(),
        "mmd": squared,
    }
    return row, by_population


PUBLISHED = ("discrepancy", "length")
"""Columns, smaller is better, that the paper orders: none, denoiser, map."""
DECIDED = 3.0
"""Standard deviations from which on a difference counts."""


def contests(by_population: dict[str, dict[str, Tensor]]) -> list[dict[str, Any]]:
    """The map against the others, column by column, from (P,) values where smaller is better."""
    found = []
    for name, own in by_population["flow_map"].items():
        for other in LOOKAHEADS[:-1]:
            nearer = (by_population[other][name] - own).sign().double()  # ties count half
            significance = float(nearer.sum()) / math.sqrt(len(nearer))
            outcome = "level" if abs(significance) < DECIDED else "won" if significance > 0 else "lost"
            failed = outcome == "lost" or (outcome == "level" and name in PUBLISHED)
            found.append(
                {
                    "column": name,
                    "against": other,
                    "nearer": float(nearer.mean() + 1) / 2,
                    "significance": significance,
                    "outcome": outcome,
                    "failed": failed,
                }
            )
    return found


def benchmark(out: Path, size: Size) -> dict[str, Any]:
    """Train what is missing, tilt by every look-ahead, and write summary.json."""
    flow_map, reward = trained(out, size)
    truth = Truth(flow_map, reward, size.base)
    judge = digits_classifier.judge(digits_classifier.halves()[1])
    zeros = (judge(truth.samples) == LABEL).double()
    measured = {
        (weights, lookahead): measure(flow_map, reward, truth, lookahead, weights, size)
        for weights in ("exact", "path")
        for lookahead in LOOKAHEADS
    }
    found = contests({name: measured["exact", name][1] for name in LOOKAHEADS})
    known = {
        "accuracy": truth.mean(zeros),
        "untilted_accuracy": float(zeros.mean()),
        "reward": truth.mean(truth.rewards),
        "log_z": truth.log_z,
        "effective_samples": truth.effective,
    }
    summary = {"truth": known, "rows": [row for row, _ in measured.values()], "contests": found}
    write_json(out / "summary.json", summary)
    return summary


SHOWN = {
    "accuracy": "zeros, weighted",
    "guided_accuracy": "zeros, guided",
    "reward_error": "error of mean r",
    "log_z": "log Z",
    "log_z_error": "error of log Z",
    "mmd": "MMD²",
    "ess": "ESS",
    "discrepancy": "discrepancy",
    "length": "length",
}


def table(summary: dict[str, Any]) -> str:
    """The rows and the truth, aligned."""
    known = summary["truth"]
    first = {"accuracy": f"{known['accuracy']:.4f}", "log_z": f"{known['log_z']:.4f}"}
    lines = [["look-ahead", "weights", *SHOWN.values()]]
    lines.append(["truth", "", *(first.get(name, "") for name in SHOWN)])
    for row in summary["rows"]:
        figures = [f"{row[name][0]:.4f} ± {row[name][1]:.4f}" for name in SHOWN]
        lines.append([row["lookahead"], row["weights"], *figures])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)).rstrip() for x in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 the order is the paper's, 1 it is not, 2 what the user gave is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--base", type=int, default=Size.base, help="samples that make the truth")
    parser.add_argument("--particles", type=int, default=Size.particles)
    parser.add_argument("--populations", type=int, default=Size.populations)
    parser.add_argument("--seed", type=int, default=Size.seed, help="of the tilts")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of both configurations")
    args = parser.parse_args(arguments)
    try:
        make_writable(args.out, "--out")
        size = Size(tuple(args.overrides), args.base, args.particles, args.populations, args.seed)
        summary = benchmark(args.out, size)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nzeros, {args.populations} populations of {args.particles}, ± standard error")
    print(table(summary))
    print(f"of the model's own samples {summary['truth']['untilted_accuracy']:.3f} are zeros")
    for c in summary["contests"]:
        print(f"map against {c['against']}, {c['column']}: {c['outcome']}, nearer in {c['nearer']:.0%}")
    print(f"wrote {args.out / 'summary.json'}")
    return 1 if any(c["failed"] for c in summary["contests"]) else 0


if __name__ == "__main__":
    sys.exit(main())
