"""``fmtt certify EXPORT --out DIR``: what a map allows, and the library against closed forms, on one page."""

from __future__ import annotations

from argparse import Namespace

from fmtt.cli.model import Model, need_extra
from fmtt.cli.output import Output
from fmtt.cli.progress import track
from fmtt.cli.steering import check_reward
from fmtt.errors import UserError
from fmtt.evaluation import certify_matrix
from fmtt.evaluation.certify import MATRICES, certify
from fmtt.evaluation.certify_bias import PaperBias
from fmtt.rewards import build, parse

SIZES = {"num_samples": (256, 32), "num_particles": (32, 8), "num_steps": (50, 20)}
"""Of a whole certificate and of a quick one."""


def run(args: Namespace) -> None:
    """Write summary.json, figures and report.html; or print the matrix alone."""
    if args.matrix_only:
        _matrix(args)
        return
    for name, sizes in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, sizes[args.quick])
    args.matrix = args.matrix or ("none" if args.quick else "quick")
    if args.export is None:
        raise UserError("certify needs an export, or --matrix-only")
    if args.out is None:
        raise UserError("certify needs --out DIR")
    need_extra("torchdiffeq", "matplotlib", "jinja2")
    from fmtt.evaluation.certify_page import page

    if args.reward:
        parse(args.reward)  # a misspelt reward is found before the model is loaded
    model = Model(args)
    reward = build(args.reward, **model.context) if args.reward else None
    if reward is not None:
        check_reward(reward, model, args.reward)
    teacher = model.teacher(args.teacher) if args.teacher else None
    out = Output(args.out)
    found = certify(
        model.map,
        None if teacher is None else teacher.velocity,
        num_samples=args.num_samples,
        reward=reward,
        cond=model.cond,
        residual_samples=min(64, args.num_samples),
        gradient_samples=min(16, args.num_samples),
        num_particles=args.num_particles,
        num_steps=args.num_steps,
        sde_steps=2 * args.num_steps,
        matrix=None if args.matrix == "none" else args.matrix,
        chunk_size=args.chunk_size,
        generator=model.generator(),
        track=track,
    )
    if args.reward:
        found = found._replace(reward=args.reward)
    report = page(found, f"Certificate of {args.export}", out.figure)
    report.write(args.out / "report.html")
    out.written.append("report.html")
    print(f"use weights={found.verdict.weights!r}: {found.verdict.reason}")
    for note in found.verdict.notes:
        print(note)
    if found.matrix:
        print(certify_matrix.summary(found.matrix))
    out.finish(
        args,
        {
            "reference": "teacher" if args.teacher else "self",
            "reward": found.reward,
            "verdict": found.verdict._asdict(),
            "residuals": found.residuals._asdict(),
            "ascent": found.ascent._asdict(),
            "mismatch": {
                **found.mismatch._asdict(),
                "drift": [[d._asdict() for d in run] for run in found.mismatch.drift],
                "relative": found.mismatch.relative(),
                "significance": found.mismatch.significance(),
            },
            "paper_bias": _bias(found.paper_bias),
            "matrix": [_cell(cell) for cell in found.matrix],
            "matrix_holds": found.matrix_holds if found.matrix else None,
        },
    )
    if not found.matrix_holds:
        raise SystemExit(1)


def _bias(found: PaperBias | None) -> dict | None:
    if found is None:
        return None
    parts = {"reward": found.reward._asdict(), "log_z": found.log_z._asdict()}
    return {**found._asdict(), **parts, "significance": found.significance}


def _cell(result: certify_matrix.CellResult) -> dict:
    return {**result._asdict(), "cell": result.cell._asdict(), "passed": result.passed}


def _matrix(args: Namespace) -> None:
    """The matrix on stdout, and in --out if given; exit status 1 where it does not hold."""
    if args.matrix == "none":
        raise UserError("--matrix-only with --matrix none leaves nothing to do; give quick or full")
    args.matrix = args.matrix or "quick"
    out = Output(args.out) if args.out else None
    found = certify_matrix.run(MATRICES[args.matrix], seed=args.seed, track=track)
    print(certify_matrix.text(found))
    holds = all(cell.passed for cell in found)
    if out is not None:
        out.finish(args, {"matrix": [_cell(cell) for cell in found], "matrix_holds": holds})
    if not holds:
        raise SystemExit(1)
