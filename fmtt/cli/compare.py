"""``fmtt compare EXPORT --reward ... --budgets 64,256,1024 --out DIR``: methods at equal cost."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import fmtt
from fmtt import png
from fmtt.baselines import budget
from fmtt.cli import same_folder
from fmtt.cli.judge import ClockJudge, Judge, RewardJudge, check_judge, judge
from fmtt.cli.model import Model, need_extra, rows
from fmtt.cli.output import Output
from fmtt.cli.progress import Progress
from fmtt.cli.steering import check_reward
from fmtt.errors import UserError, nearest
from fmtt.evaluation.comparison import cells, statistics, units
from fmtt.evaluation.comparison.cells import Cell, Setting
from fmtt.files import write_json
from fmtt.rewards import build, describe, parse

SHOWN = 8
SPENT = ("passes", "reward calls", "judge calls", "seconds")
"""What the printed table says of a run's cost."""
BASE_SAMPLES = 64
FIXED = ("export", "reward", "judge", "tolerance", "teacher", "unit", "seed", "label", "guidance_scale")
FILES = ("export", "teacher")
"""What must not change between runs that share a folder: arguments, and what is in those that name files."""


def run(args: Namespace) -> None:
    """Run what is not there yet, then write summary.json, comparison.csv, figures and report.html."""
    need_extra("matplotlib", "jinja2")
    parse(args.reward)
    check_judge(args.judge)
    methods = _methods(args.methods)
    setting, model, judged = build_setting(args)
    methods, left_out = _applicable(args, methods, setting)
    out = Output(args.out)
    passes = _same_folder(args, methods, setting)
    plan = cells.plan(methods, passes, args.runs)
    folder = args.out / "cells"
    todo = [cell for cell in plan if not cells.finished(folder, cell)]
    if len(todo) < len(plan):
        print(f"{len(plan) - len(todo)} of {len(plan)} cells are there already")
    with Progress("comparing", sum(c.passes * c.runs for c in plan)) as bar:
        bar.advance(sum(c.passes * c.runs for c in plan if c not in todo))
        for cell in _run_all(args, setting, todo, folder):
            bar.advance(cell.passes * cell.runs)
    _write(args, out, plan, setting, model, judged, left_out)


def build_setting(args: Namespace) -> tuple[Setting, Model, Judge | None]:
    """The model, reward and judge of a command, checked."""
    model = Model(args)
    reward = build(args.reward, **model.context)
    check_reward(reward, model, args.reward)
    judged = judge(args, model, reward)
    if isinstance(judged, RewardJudge):
        check_reward(judged.reward, model, args.judge, "--judge")
    setting = Setting(
        model.map,
        reward,
        velocity=model.teacher(args.teacher).velocity if args.teacher else None,
        judge=None if judged is None else judged.values,
        cond=model.cond,
        chunk_size=args.chunk_size,
        device=model.device,
        seed=args.seed,
    )
    return setting, model, judged


def _methods(text: str) -> list[str]:
    if text == "all":
        return list(budget.NAMES)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in budget.NAMES:
            hint = nearest(name, budget.NAMES)
            raise UserError(f"--methods: {name!r} is not one of all, {', '.join(budget.NAMES)}{hint}")
    if not names:
        raise UserError(f"--methods names none; methods: {', '.join(budget.NAMES)}")
    return list(dict.fromkeys(names))


def _applicable(args: Namespace, methods: list[str], setting: Setting) -> tuple[list[str], list[str]]:
    """Methods that can use the reward, and what is said of those left out of "all".

    Raises:
        UserError: for a method named by the user that needs a gradient which the reward has not.
    """
    if describe(setting.reward).differentiable is not False:
        return methods, []
    without = [m for m in methods if m in budget.NEED_GRADIENT]
    if without and args.methods != "all":
        raise UserError(
            f"--methods: {without[0]} needs a gradient, which --reward {args.reward} does not have"
        )
    return [m for m in methods if m not in without], [f"{m}, which needs a gradient" for m in without]


def _same_folder(args: Namespace, methods: list[str], setting: Setting) -> dict[str, dict[float, int]]:
    """By method, the passes that each budget comes to: those that the folder already has, or new ones.

    Raises:
        UserError: when the folder holds a comparison of something else.
    """
    path = args.out / "comparison.json"
    wanted = same_folder.settings(args, FIXED, FILES)
    stored: dict[str, Any] = {"settings": wanted, "passes": {}}
    if path.is_file() and any((args.out / "cells").glob("*")):  # else nothing came of it yet
        stored = same_folder.stored(path, wanted, args.out, "a comparison")
    known: dict[str, dict[str, int]] = stored["passes"]
    for method in methods:
        table = known.setdefault(method, {})
        new = [b for b in args.budgets if f"{b:g}" not in table]
        table.update(zip((f"{b:g}" for b in new), _passes(args, method, new, setting), strict=True))
    write_json(path, stored)
    return {m: {b: known[m][f"{b:g}"] for b in args.budgets} for m in methods}


def _passes(args: Namespace, method: str, budgets: list[float], setting: Setting) -> list[int]:
    if args.unit == "passes" or not budgets:
        return [int(b) for b in budgets]
    if args.unit == "reward_calls":
        known = describe(setting.reward).differentiable
        return [units.passes_for_calls(method, b, known) for b in budgets]
    seconds = units.pace(
        method,
        setting.flow_map,
        setting.reward,
        min(cells.BATCH, args.runs),
        velocity=setting.velocity,
        cond=setting.cond,
        chunk_size=setting.chunk_size,
        generator=torch.Generator(setting.device).manual_seed(setting.seed),
    )
    return [int(b / seconds) for b in budgets]


def _run_all(args: Namespace, setting: Setting, todo: list[Cell], folder: Path) -> Iterator[Cell]:
    """Run cells here or in worker processes; yield each when its file is written."""
    if args.processes == 1 or len(todo) < 2:
        for cell in todo:
            cells.save(folder, cell, cells.run(setting, cell))
            yield cell
        return
    words = Namespace(**{key: value for key, value in vars(args).items() if key != "run"})
    with ProcessPoolExecutor(
        args.processes, get_context("spawn"), initializer=_start_worker, initargs=(words,)
    ) as pool:
        try:
            for done in as_completed([pool.submit(_work, cell, folder) for cell in todo]):
                yield done.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died, perhaps for want of memory: use fewer --processes or a smaller "
                "--chunk-size, and run the same command to continue"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_setting: Setting | None = None


def _start_worker(args: Namespace) -> None:
    global _setting
    torch.set_num_threads(max(1, torch.get_num_threads() // args.processes))
    _setting = build_setting(args)[0]


def _work(cell: Cell, folder: Path) -> Cell:
    assert _setting is not None
    cells.save(folder, cell, cells.run(_setting, cell))
    return cell


def _write(
    args: Namespace,
    out: Output,
    plan: list[Cell],
    setting: Setting,
    model: Model,
    judged: Judge | None,
    missing: list[str],
) -> None:
    from fmtt.evaluation.comparison import page
    from fmtt.evaluation.pictures import particle_grids
    from fmtt.evaluation.style import png as render

    table: list[statistics.Row] = []
    missing = list(missing)
    shown: dict[str, torch.Tensor] = {}
    for (method, amount), parts in _grouped(plan):
        loaded = [runs for cell in parts if (runs := cells.load(args.out / "cells", cell)) is not None]
        if not loaded:
            missing.append(f"{method} at {amount:g}")
            continue
        runs = statistics.join(loaded)
        table.append(statistics.row(method, amount, runs))
        shown[method] = runs.best[:SHOWN]  # of the largest budget in the end
    if not table:
        if cells.discard(args.out / "cells", plan):  # nothing came of it, so the folder is free again
            (args.out / "comparison.json").unlink(missing_ok=True)
        raise UserError(f"--budgets are too small for every method, give larger ones: {'; '.join(missing)}")
    table = statistics.mark_top(table)
    base = _base_restoration(setting, model)
    pictures = []
    if png.is_image(model.map.data_shape):
        captions = {k: judged.captions(x) for k, x in shown.items()} if judged else None
        grid = render(particle_grids(shown, captions, columns=4, values=model.values))
        out.bytes("samples.png", grid)
        pictures = [("Returned samples at the largest budget, with the judge's reading", grid)]
    name = None if judged is None else judge_name(judged)
    report, pareto = page.report(
        f"Methods compared on {args.export}, reward {args.reward}",
        table,
        unit=args.unit,
        judge=name,
        judge_is_rate=isinstance(judged, ClockJudge),
        base_restoration=base,
        missing=missing,
        pictures=pictures,
    )
    out.bytes("pareto.png", pareto)
    out.bytes("comparison.csv", statistics.to_csv(table).encode())
    report.write(args.out / "report.html")
    out.written.append("report.html")
    _print(table, name)
    if missing:
        print(f"left out, or budget too small: {'; '.join(missing)}")
    results = {"unit": args.unit, "judge": name, "base_restoration": base, "too_small": missing}
    out.finish(args, {**results, "rows": [r._asdict() for r in table]})


def _grouped(plan: Iterable[Cell]) -> list[tuple[tuple[str, float], list[Cell]]]:
    groups: dict[tuple[str, float], list[Cell]] = {}
    for cell in sorted(plan, key=lambda c: (c.amount, c.batch)):
        groups.setdefault((cell.method, cell.amount), []).append(cell)
    return list(groups.items())


def _base_restoration(setting: Setting, model: Model) -> float:
    x = fmtt.sample(
        model.map, BASE_SAMPLES, steps=4, cond=rows(model.cond, BASE_SAMPLES), generator=model.generator(1)
    )
    return float(cells.restoration_error(setting.flow_map, x, model.cond, model.generator(2)).mean())


def judge_name(judged: Judge) -> str:
    """What the judge measures, for an axis."""
    if isinstance(judged, ClockJudge):
        return "hit rate by the judge"
    return f"held-out reward {judged.name}" if isinstance(judged, RewardJudge) else "judge"


def _print(table: list[statistics.Row], judge: str | None) -> None:
    width = max(len(r.method) for r in table)
    spent = "".join(f"{name:>14}" for name in SPENT)
    said = f"{judge or 'reward'} ± standard error (* top of its budget)"
    print(f"{'method':<{width}}  {'budget':>8}{spent}  {said}")
    for r in sorted(table, key=lambda r: (r.amount, -(r.judge if judge else r.reward))):
        value, error = (r.judge, r.judge_se) if judge else (r.reward, r.reward_se)
        spent = "".join(f"{getattr(r, name.replace(' ', '_')):>14.4g}" for name in SPENT)
        print(f"{r.method:<{width}}  {r.amount:>8g}{spent}  {value:.3g} ± {error:.2g}{' *' if r.top else ''}")
