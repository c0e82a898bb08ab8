"""From a configuration to objective, teacher and guidance; what does not go together is said in one line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fmtt.errors import UserError
from fmtt.flow.oracle import GaussianMixture
from fmtt.models.checkpoint import NETWORKS, load
from tests.train.conftest import write_teacher
from train.build import build_module
from train.losses import OBJECTIVES
from train.module import FlowMapModule

LABELS = "student.args={width: 16, depth: 1, num_classes: 8}"


def build(
    toy, *overrides: str, teacher: str = "oracle:mixture", shape: tuple[int, ...] = (2,)
) -> FlowMapModule:
    config = toy(f"teacher={teacher}", "objective.name=''", *overrides)
    return build_module(config, "distill", shape)


MISTAKES = [
    (["objective.terms.psdm=1"], "objective.terms: 'psdm' is not one of"),
    (["objective.terms.psd_m=1"], "any flow satisfies psd_m: add diagonal"),
    (["objective.name=psd_u"], "any flow satisfies psd_u: add diagonal"),
    (["objective.terms={psd: 1, lmd: 1}", "times.diagonal=0.5"], "psd is itself a sum"),
    (["objective.terms={lsd: 1, diagonal: 1}"], "times.diagonal must be positive for lsd + diagonal"),
    (["objective.terms={lsd: 1, diagonal: 1}", "times.diagonal=1"], "times.diagonal must be below 1"),
    (["objective.terms={psd_u: 1, diagonal: 1}", "times.diagonal=0.5"], "times.midpoint must be uniform"),
    (["objective.terms={flow_matching: 1}"], "is not an objective of distill"),
    (["teacher=self", "objective.name=lsd"], "lsd sees no data: add flow_matching"),
    (["teacher=self", "objective.name=psd_m"], "any flow satisfies psd_m: add flow_matching"),
    (["teacher=self", "objective.terms={psd_m: 1, diagonal: 1}"], "sees no data: add flow_matching"),
    (["teacher=oracle:mixtur"], "teacher: 'mixtur' is not one of mixture, mixture-labelled; did you mean"),
    (["teacher=oracle:mixture-labelled"], "student.args.num_classes must be 8"),
    (["guidance.method=cgf"], "guidance.method: 'cgf' is not one of cfg, autoguidance; did you mean 'cfg'"),
    (["guidance.method=cfg"], "guidance.method=cfg needs a null label"),
    (["guidance.dropout=0.1"], "guidance.dropout needs a null label"),
    (["guidance.scale=[1,3]"], "guidance.scale needs guidance.method"),
    (["guidance.method=autoguidance"], "guidance.weak: autoguidance needs the export"),
    (["guidance.method=autoguidance", "guidance.weak=/nowhere"], "there is no export at /nowhere"),
    (["teacher=self", "objective.name=tvm", "guidance.method=autoguidance"], "tvm draws its own data"),
    (["teacher=self", "objective.name=mean_flow", "guidance.method=autoguidance"], "needs a teacher beside"),
]


@pytest.mark.parametrize("overrides, says", MISTAKES, ids=[" ".join(o) for o, _ in MISTAKES])
def test_what_does_not_go_together_is_one_line(overrides, says, toy):
    with pytest.raises(UserError) as caught:
        build(toy, *overrides)
    assert says in str(caught.value) and "\n" not in str(caught.value)


CONFIG_MISTAKES = [
    (
        ["objective.name=lsd", "objective.terms.psd_m=1"],
        "objective.name (lsd) and objective.terms are both given",
    ),
    (["objective.name=''", "objective.terms.lsd=0"], "objective.terms.lsd must be positive, got 0"),
    (["objective.name=''", "objective.terms.lsd=.nan"], "objective.terms.lsd must be positive"),
    (["objective.name=''", "objective.terms.lsd=much"], "objective.terms.lsd: "),
    (["objective.name=''", "objective.terms=3"], "objective.terms"),
    (["guidance.scale=[3,1]"], "guidance.scale must be [low, high]"),
    (["guidance.scale=[1]"], "guidance.scale must be [low, high]"),
    (["guidance.interval=[0,2]"], "guidance.interval must be [low, high]"),
    (["guidance.dropout=2"], "guidance.dropout must lie in [0, 1]"),
    (["ema.target_half_life=-1"], "ema.target_half_life must be at least 0"),
]


@pytest.mark.parametrize("overrides, says", CONFIG_MISTAKES, ids=[" ".join(o) for o, _ in CONFIG_MISTAKES])
def test_values_that_no_run_can_have(overrides, says, toy):
    with pytest.raises(UserError) as caught:
        toy(*overrides)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - {"flow_matching", "psd_m", "psd_u"}))
def test_every_objective_builds_alone(name, toy):
    module = build(toy, f"objective.name={name}", "times.diagonal=0.5")
    assert module.objective.objective is OBJECTIVES[name] and isinstance(module.teacher, GaussianMixture)


def test_lsd_is_what_is_meant_without_a_name(toy):
    assert build(toy).objective.objective is OBJECTIVES["lsd"]


def test_a_self_taught_student_has_no_teacher_and_may_have_its_own_average(toy):
    terms = "objective.terms={psd_m: 1, flow_matching: 1}"
    module = build(toy, terms, "times.diagonal=0.5", "ema.target_half_life=7", teacher="self")
    assert module.teacher is None and module.export["kind"] == "flow_map"
    assert module.ema.half_lives == [2, 5, 7]
    again = build(toy, terms, "times.diagonal=0.5", "ema.target_half_life=5", teacher="self")
    assert again.ema.half_lives == [2, 5]
    assert not [name for name in module.state_dict() if not name.startswith("student.")]


def test_a_network_without_a_second_time_cannot_be_pretrained(toy, monkeypatch):
    class Plain(nn.Module):
        def __init__(self, data_shape: tuple[int, ...]) -> None:
            super().__init__()
            self.layer = nn.Linear(data_shape[0], data_shape[0])

        def forward(self, x, s, t, cond=None):
            return self.layer(x)

    monkeypatch.setitem(NETWORKS, "plain", Plain)
    config = toy("student.network=plain")
    config.student.args = {}
    with pytest.raises(
        UserError, match="^student.network: plain has no second_time, .*CONTRIBUTING.md shows$"
    ):
        build_module(config, "pretrain", (2,))


def test_an_oracle_for_other_data(toy):
    with pytest.raises(UserError, match=r"teacher: oracle:mixture is for samples of shape \(2,\)"):
        build(toy, shape=(3,))


def test_a_conditioned_student_keeps_its_teachers_weights(toy, tmp_path):
    args = {"width": 16, "depth": 1, "num_classes": 8}
    path = write_teacher(tmp_path / "labelled", (2,), "mlp", args)
    scale = ("guidance.method=cfg", "guidance.scale=[1,4]")
    module = build(toy, *scale, teacher=str(path))
    assert module.export["network_args"] == {**args, "guidance": True}
    teacher, x, t = load(path), torch.randn(4, 2), torch.rand(4)
    cond = {"label": torch.arange(4), "guidance_scale": torch.full((4,), 3.0)}
    assert torch.equal(module.student.velocity(x, t, cond), teacher.velocity(x, t, cond))
    null = {"label": torch.full((4,), 8)}
    guided = 3 * teacher.velocity(x, t, cond) - 2 * teacher.velocity(x, t, null)
    torch.testing.assert_close(module.velocity()(x, t, cond), guided)
    fixed = build(toy, "guidance.method=cfg", "guidance.scale=[3,3]", teacher=str(path))
    assert fixed.export["network_args"] == args


def test_autoguidance_takes_its_weak_model_from_an_export(toy, teacher, tmp_path):
    weak = write_teacher(tmp_path / "weak", (2,), "mlp", {"width": 8, "depth": 1})
    settings = ("guidance.method=autoguidance", f"guidance.weak={weak}", "guidance.scale=[2,2]")
    module = build(toy, *settings, teacher=str(teacher))
    x, t = torch.randn(4, 2), torch.rand(4)
    guided = module.velocity()(x, t, {"guidance_scale": torch.full((4,), 2.0)})
    torch.testing.assert_close(guided, 2 * load(teacher).velocity(x, t) - load(weak).velocity(x, t))


@pytest.mark.parametrize("teacher_name", ["oracle:mixture-labelled", "self"])
def test_a_run_with_a_guidance_scale_and_dropout(teacher_name, toy, tmp_path):
    from train.export import export_run
    from train.run import train

    config = toy(
        f"teacher={teacher_name}",
        "objective.name=mean_flow",
        "data.source=mixture-labelled",
        LABELS,
        "guidance.method=cfg",
        "guidance.scale=[1,4]",
        "guidance.dropout=0.2",
        "max_steps=2",
    )
    folder = export_run(train(config, "distill"), tmp_path / "out")
    flow_map = load(folder)
    x, s = torch.randn(3, 2), torch.zeros(3)
    cond = {"label": torch.tensor([0, 3, 8]), "guidance_scale": torch.tensor([1.0, 2.0, 4.0])}
    assert flow_map(x, s, s + 1, cond).shape == (3, 2)
