"""What of the section ``adversarial`` is refused, and in which words."""

from __future__ import annotations

import pytest

from fmtt.errors import UserError
from train.__main__ import main
from train.run import train

ON = ("adversarial.weight=0.5", "adversarial.args={width: 8, depth: 1}")

MISTAKES = {
    "adversarial.wieght=1": "did you mean 'adversarial.weight'",
    "adversarial.weight=-1": "adversarial.weight must be at least 0, got -1.0",
    "adversarial.weight=.inf": "adversarial.weight must be at least 0, got inf",
    "adversarial.start_step=-1": "adversarial.start_step must be at least 0",
    "adversarial.warmup=-1": "adversarial.warmup must be at least 0",
    "adversarial.from_noise=1.5": "adversarial.from_noise must lie in [0, 1], got 1.5",
    "adversarial.from_noise=-0.5": "adversarial.from_noise must lie in [0, 1], got -0.5",
    "adversarial.lr=0": "adversarial.lr must be positive, got 0.0",
    "adversarial.lr=.nan": "adversarial.lr must be positive, got nan",
    "adversarial.betas=[1, 0.9]": "adversarial.betas must be two numbers in [0, 1)",
    "adversarial.betas=[0.9]": "adversarial.betas must be two numbers in [0, 1)",
    "adversarial.betas=[[0, 1]]": "adversarial.betas",
    "adversarial.r1=-1": "adversarial.r1 must be at least 0",
    "adversarial.r2=-1": "adversarial.r2 must be at least 0",
    "adversarial.penalty_step=-0.1": "adversarial.penalty_step must be at least 0",
    "adversarial.network=mpl": "adversarial.network: 'mpl' is not one of dit, mlp; did you mean 'mlp'",
    "adversarial.network=dit": "adversarial.args: ",
    "adversarial.args={widht: 8}": "adversarial.args: 'widht' is not one of width",
    "adversarial.args={width: wide}": "adversarial.args: ",
    "adversarial.args={num_classes: 3}": "adversarial.args: 'num_classes' is not one of",
    "adversarial.args=3": "adversarial.args must be a mapping",
    "adversarial=3": "adversarial must be a mapping",
    "adversarial=null": "adversarial must be a mapping",
    "trainer.compile=true": "adversarial.weight needs trainer.compile=false",
    "trainer.strategy=fsdp": "adversarial.weight needs trainer.strategy=auto or ddp",
    "trainer.precision=16-mixed": "adversarial.weight needs another trainer.precision than 16-mixed",
    "student.init=/nowhere": "student.init: '/nowhere' is not one of teacher, scratch nor an export",
    "student.init=clock-map": "student.init: clock-map is for samples of shape (3, 32, 32)",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_what_cannot_be_is_said_in_one_line(override, pretrain_yaml, teacher, tmp_path, capsys):
    given = (f"run_dir={tmp_path / 'run'}", f"teacher={teacher}", "objective.name=lmd", *ON, override)
    assert main(["distill", str(pretrain_yaml), *given]) == 2
    error = capsys.readouterr().err
    assert MISTAKES[override] in error and error.count("\n") == 1


def test_it_is_for_distillation(toy):
    with pytest.raises(UserError, match="adversarial.weight is for distill"):
        train(toy(*ON), "pretrain")
