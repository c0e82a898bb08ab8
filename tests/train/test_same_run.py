"""Which settings make a run another one, without training: what is compared, and what may change."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fmtt.errors import UserError
from train.config import Config, to_yaml
from train.same_run import check_same_run

FIXED = {
    "seed=4": "seed is 4",
    "student.args={width: 8}": "student.args is",
    "student.interpolant=trigonometric": "student.interpolant",
    "objective.time_left_power=1": "objective.time_left_power",
    "guidance.dropout=0.1": "guidance.dropout",
    "times.diagonal=0.5": "times.diagonal",
    "optimizer.clip=2": "optimizer.clip",
    "ema.half_lives=[9]": "ema.half_lives",
    "weighting.learned=true": "weighting.learned",
    "adversarial.weight=1": "adversarial.weight",
    "data.source=checkerboard": "data.source",
    "data.sources=[{source: mixture}]": "data.sources",
    "teacher={pretrained: P, family: flux}": "teacher.pretrained is P",
    "batch_size=8": "is 8, but the run",
    "trainer.accumulate=2": "is 32, but the run",
    "trainer.devices=2": "is 32, but the run",
    "trainer.num_nodes=2": "is 32, but the run",
}


def save(config: Config) -> Path:
    run_dir = Path(config.run_dir)
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(to_yaml(config))
    return run_dir


@pytest.mark.parametrize("change", FIXED)
def test_another_run_is_refused(change, toy):
    run_dir = save(toy(distill="lmd"))
    with pytest.raises(UserError, match=FIXED[change]) as caught:
        check_same_run(toy(change, distill="lmd"), run_dir)
    assert "another run_dir" in str(caught.value) and "\n" not in str(caught.value)


def test_a_pipeline_gives_way_to_no_export(toy):
    run_dir = save(toy("teacher={pretrained: P, family: flux}", distill="lmd"))
    with pytest.raises(UserError, match=r"teacher is .*points, but the run .* started with \{'pretrained'"):
        check_same_run(toy(distill="lmd"), run_dir)


def test_what_may_change(toy):
    run_dir = save(toy())
    same = ("max_steps=9", "checkpoint.keep=1", "evaluate.every_steps=1", "log.wandb=true", "data.tries=1")
    check_same_run(toy(*same, "batch_size=4", "trainer.devices=2", "trainer.num_nodes=2"), run_dir)


def test_keys_that_an_older_version_did_not_have_count_as_their_defaults(toy):
    run_dir = save(toy())
    older = yaml.safe_load((run_dir / "config.yaml").read_text())
    del older["adversarial"], older["weighting"]["ramp_end"]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(older))
    check_same_run(toy(), run_dir)
    with pytest.raises(UserError, match="adversarial.weight is 1.0, but the run .* started with 0.0"):
        check_same_run(toy("adversarial.weight=1"), run_dir)
