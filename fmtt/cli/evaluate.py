"""``fmtt evaluate EXPORT --out DIR``: look-ahead accuracy as numbers, figures and a page."""

from __future__ import annotations

from argparse import Namespace

import torch
from torch import Tensor

from fmtt import png
from fmtt.cli.model import Model, need_extra, rows
from fmtt.cli.output import Output
from fmtt.cli.progress import track
from fmtt.cli.steering import check_reward
from fmtt.evaluation import ascent, lookahead
from fmtt.evaluation.report import Report
from fmtt.rewards import build, parse
from fmtt.steering.lookahead import FlowMapLookahead
from fmtt.types import Reward, VelocityField

SAMPLE_STEPS = (1, 2, 4, 8)
SHOWN = 10
TOLERANCE = 1e-5


def run(args: Namespace) -> None:
    """Write summary.json, figures and report.html."""
    need_extra("torchdiffeq", "matplotlib", "jinja2")
    from fmtt.evaluation import figures

    if args.reward:
        parse(args.reward)  # a misspelt reward is found before the model is loaded
    model = Model(args)
    reward = model.sees(build(args.reward, **model.context)) if args.reward else None
    if reward is not None:
        check_reward(reward, model, args.reward)
    field = model.teacher(args.teacher) if args.teacher else model.map
    out = Output(args.out)

    trajectory = lookahead.reference(
        field.velocity,
        args.num_samples,
        model.map.data_shape,
        cond=rows(model.cond, args.num_samples),
        tol=TOLERANCE,
        generator=model.generator(),
        device=model.device,
        dtype=model.dtype,
        chunk_size=args.chunk_size,
        track=track,
    )
    errors = lookahead.lookahead_errors(
        model.map, trajectory, velocity=field.velocity, chunk_size=args.chunk_size, track=track
    )
    matched = lookahead.teacher_nfe_matched(
        field.velocity, trajectory, errors, chunk_size=args.chunk_size, track=track
    )

    name = "teacher" if args.teacher else "self"
    whose = "the teacher's ODE" if args.teacher else "the map's own diagonal"
    report = Report(
        f"Look-ahead accuracy of {args.export}",
        f"{args.num_samples} trajectories of {whose}, solved to tolerance {TOLERANCE:g}. At each time, every "
        "look-ahead's guess of the endpoint is compared with where the trajectory ends.",
    )
    _pictures(model, field.velocity, trajectory, out, report)
    report.section("Error over time", "Root mean square over samples and coordinates, ± one standard error.")
    report.figure(out.figure("rmse.png", figures.rmse_curves(errors, reference=whose)), "Error over time")
    report.table(*_table(errors.t, errors.rmse, errors.standard_error), "RMSE ± standard error")
    report.table(
        ["look-ahead", "Euler steps"],
        list(matched.items()),
        f"Euler steps of the reference to the same error from t = 0, at most {lookahead.MAX_TEACHER_STEPS}",
    )
    results = {
        "reference": name,
        "tolerance": TOLERANCE,
        "lookahead": errors._asdict(),
        "teacher_nfe_matched": matched,
    }
    if reward is not None:
        found = _reward(args, model, trajectory, reward, field.velocity)
        results["reward"] = found._asdict()
        report.section(
            "Reward", f"The reward {args.reward} of each look-ahead, and which way its gradient points."
        )
        report.figure(out.figure("reward.png", figures.reward_curves(found)), "Reward look-ahead over time")
        report.table(
            *_table(found.t, found.reward_rmse, found.reward_standard_error), "RMSE of the look-ahead reward"
        )
        if found.cosine:
            report.table(
                *_table(found.t, found.cosine, found.cosine_standard_error),
                "Cosine with the gradient through the exact ODE",
            )
    report.write(args.out / "report.html")
    out.written.append("report.html")
    out.finish(args, results)


def _reward(
    args: Namespace,
    model: Model,
    trajectory: lookahead.Trajectory,
    reward: Reward,
    velocity: VelocityField,
) -> ascent.RewardErrors:
    differentiable = getattr(reward, "differentiable", True)
    return ascent.reward_errors(
        model.map,
        trajectory,
        reward,
        velocity=velocity,
        gradient_samples=args.gradient_samples if differentiable else 0,
        chunk_size=args.chunk_size,
        track=track,
    )


@torch.no_grad()
def _pictures(
    model: Model, velocity: VelocityField, trajectory: lookahead.Trajectory, out: Output, report: Report
) -> None:
    """The look-ahead grid and samples at several step counts, where samples are images."""
    if not png.is_image(model.map.data_shape):
        return
    from fmtt.evaluation import pictures

    few = trajectory.first(SHOWN)
    grid = pictures.lookahead_grid(model.map, few, velocity=velocity, values=model.values)
    samples: dict[str, Tensor] = {}
    for k in SAMPLE_STEPS:
        step = lookahead.bind(FlowMapLookahead(model.map, k), velocity)
        samples[f"{k} step{'s' if k > 1 else ''}"] = step(few.states[0], few.times[0], few.cond)
    samples["reference ODE"] = few.endpoint
    report.section("What each look-ahead sees", "One trajectory; the bottom row is where it truly ends.")
    report.figure(out.figure("lookahead.png", grid), "Look-aheads of one trajectory over time")
    report.figure(
        out.figure("steps.png", pictures.sample_rows(samples, values=model.values)),
        "Samples of the map from the same noise, by number of steps, above the reference's",
    )


def _table(
    times: tuple[float, ...], values: dict[str, list[float]], errors: dict[str, list[float]]
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of numbers with their standard errors."""
    table = [
        [f"{t:g}", *(f"{values[name][k]:.4g} ± {errors[name][k]:.1g}" for name in values)]
        for k, t in enumerate(times)
    ]
    return ["t", *values], table
