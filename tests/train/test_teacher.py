"""Teachers: the student itself, closed-form laws, guidance; and a run that needs none."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.procedural import MODES, procedural
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear, Trigonometric
from fmtt.models.mlp import MLP
from train.build import build_module
from train.ema import Ema
from train.losses import OBJECTIVES, Times
from train.losses.base import sample_path
from train.teacher import ORACLES, Guidance, SelfTeacher, mixture

N = 20_000


def student(**args) -> NeuralFlowMap:
    """A small map with random weights, none of them zero."""
    network = MLP((2,), width=8, depth=1, **args)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return NeuralFlowMap(network, Linear(), (2,))


def points(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 2, generator=generator), torch.rand(n, generator=generator)


@pytest.mark.parametrize("interpolant", [Linear(), Trigonometric()], ids=["linear", "trigonometric"])
@pytest.mark.parametrize("name", sorted(ORACLES))
def test_an_oracle_is_the_mean_data_velocity(name, interpolant, generator):
    """E[(dI_t/dt - b_t(I_t)) f(I_t)] = 0 for every f: within 4 standard errors, and not for another law."""
    oracle = ORACLES[name](interpolant)
    x_1, cond = procedural("mixture-labelled").batch(torch.arange(N), 0)
    assert cond is not None
    if name == "mixture-labelled":
        cond["label"][: N // 4] = MODES
    x_0, t = torch.randn(N, 2, generator=generator), torch.rand(N, generator=generator)
    path = sample_path(interpolant, x_0, x_1, t)

    def significance(velocity: Tensor) -> Tensor:
        x = path.x_s
        tests = torch.stack([torch.ones_like(x), x, x.flip(1), x * t[:, None], torch.sin(3 * x)], -1)
        moments = (path.velocity_s - velocity)[..., None] * tests
        return moments.mean(0).abs() / (moments.std(0) / N**0.5)

    assert significance(oracle.velocity(path.x_s, t, cond)).max() < 4
    shrunk = oracle.velocity(0.9 * path.x_s, t, cond)
    assert significance(shrunk).max() > 4


def test_labels_of_the_oracle(generator):
    """A mode's velocity ends at that mode; the null label's is the mixture's."""
    oracle, law = ORACLES["mixture-labelled"](Linear()), mixture(Linear())
    x, t = points(50, generator)
    null = {"label": torch.full((50,), MODES)}
    torch.testing.assert_close(oracle.velocity(x, t, null), law.velocity(x, t))
    label = {"label": torch.arange(50) % MODES}
    start = torch.zeros(50)
    ends = x + oracle.velocity(x, start, label)  # at t = 0 the denoiser is the mode's mean
    torch.testing.assert_close(ends, law.means[label["label"]].float())


def test_the_student_teaches_itself_without_gradients(generator):
    own = student()
    x, t = points(5, generator)
    velocity = SelfTeacher(own).velocity(x, t)
    assert not velocity.requires_grad and torch.equal(velocity, own.velocity(x, t))


def test_averaged_weights_teach_and_move_on(generator):
    own = student()
    ema = Ema(own, [0.0, 5.0])
    teacher = SelfTeacher(own, ema.averages[1])
    x, t = points(5, generator)
    for step in range(100, 103):
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.add_(0.1)
        ema.update(own, step)
        with ema.swapped_in(own, 1):
            expected = own.velocity(x, t)
        assert torch.equal(teacher.velocity(x, t), expected)
        assert not torch.allclose(own.velocity(x, t), expected)
    assert all(not p.requires_grad for p in teacher.carrier.parameters())
    assert all(p.requires_grad for p in own.parameters())


def test_classifier_free_guidance(generator):
    oracle = ORACLES["mixture-labelled"](Linear())
    x, t = points(60, generator)
    label, scale = torch.arange(60) % MODES, 1 + 3 * torch.rand(60, generator=generator)
    guidance = Guidance("cfg", None, (1.0, 4.0), (0.2, 0.7), 0.0, MODES)
    conditional = oracle.velocity(x, t, {"label": label})
    null = oracle.velocity(x, t, {"label": torch.full_like(label, MODES)})
    w = torch.where((t >= 0.2) & (t <= 0.7), scale, 1.0)[:, None]
    guided = guidance.guided(oracle.velocity)(x, t, {"label": label, "guidance_scale": scale})
    torch.testing.assert_close(guided, null + w * (conditional - null))
    assert bool((w == 1).any()) and bool((w > 1).any())


def test_autoguidance(generator):
    strong, weak = student(), student()
    x, t = points(10, generator)
    guidance = Guidance("autoguidance", weak, (2.0, 2.0))
    guided = guidance.guided(strong.velocity)(x, t, {"guidance_scale": torch.full((10,), 2.0)})
    torch.testing.assert_close(guided, 2 * strong.velocity(x, t) - weak.velocity(x, t))


def test_draws(generator):
    guidance = Guidance("cfg", None, (1.0, 3.0), (0.0, 1.0), 0.25, MODES)
    label = torch.arange(N) % MODES
    cond = guidance.draw({"label": label}, N, generator, "cpu")
    assert cond is not None and bool((label < MODES).all())  # what came in is not changed
    dropped = cond["label"] == MODES
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / N) ** 0.5)
    scale = cond["guidance_scale"]
    assert bool((scale[dropped] == 1).all()) and bool(((scale >= 1) & (scale <= 3)).all())
    kept = scale[~dropped]
    assert float(kept.mean()) == pytest.approx(2.0, abs=4 * (4 / 12 / len(kept)) ** 0.5)
    state = generator.get_state()
    assert Guidance().draw(None, 5, generator, "cpu") is None
    assert torch.equal(generator.get_state(), state)  # a run without guidance draws as it always did


def test_guided_data_has_the_guided_velocity_as_its_mean(generator):
    """With the exact null velocity, flow matching on guided data learns classifier-free guidance."""
    oracle = ORACLES["mixture-labelled"](Linear())
    x_1, cond = procedural("mixture-labelled").batch(torch.arange(N), 0)
    assert cond is not None
    cond["guidance_scale"] = 1 + 2 * torch.rand(N, generator=generator)
    guidance = Guidance("cfg", None, (1.0, 3.0), (0.0, 1.0), 0.0, MODES)
    x_0, s = torch.randn(N, 2, generator=generator), torch.rand(N, generator=generator)
    plain = sample_path(Linear(), x_0, x_1, s)
    path = guidance.guided_data(plain, Times(s, s, s), cond, oracle)
    # Labels must be in the test functions: averaged over them, guidance leaves the velocity as it is.
    target = guidance.guided(oracle.velocity)(path.x_s, s, cond)
    centre = mixture(Linear()).means[cond["label"]]
    for test in (torch.ones_like(x_0), path.x_s, centre, centre * s[:, None]):
        moments = (path.velocity_s - target) * test
        assert (moments.mean(0).abs() < 4 * moments.std(0) / N**0.5).all()
    unguided = (plain.velocity_s - target) * centre
    assert (unguided.mean(0).abs() > 4 * unguided.std(0) / N**0.5).all()


def test_the_scale_reaches_the_network_and_one_is_the_default(generator):
    conditioned = student(guidance=True)
    x, t = points(6, generator)
    scales = [conditioned.velocity(x, t, {"guidance_scale": torch.full((6,), w)}) for w in (1.0, 3.0)]
    assert torch.equal(conditioned.velocity(x, t), scales[0]) and not torch.allclose(scales[0], scales[1])
    torch.manual_seed(5)
    fresh = MLP((2,), width=8, guidance=True)
    torch.nn.init.normal_(fresh.final.weight)
    one, other = (fresh(x, t, t, {"guidance_scale": torch.full((6,), w)}) for w in (1.0, 3.0))
    assert torch.equal(one, other)  # nothing is known of guidance until it is trained


SELF = (
    "teacher=self",
    "objective.terms={lmd: 1.0, flow_matching: 1.0}",
    "times.diagonal=0.75",
    "objective.name=''",
)


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - {"flow_matching", "diagonal", "psd"}))
def test_every_objective_trains_with_the_student_as_its_teacher(name, toy, generator):
    terms = {name: 1.0} | ({} if name in ("tvm", "mean_flow") else {"flow_matching": 1.0})
    config = toy(
        *SELF[:1],
        "times.diagonal=0.5",
        "times.midpoint=uniform",
        "objective.name=''",
        "ema.target_half_life=3",
    )
    config.objective.terms = terms
    module = build_module(config, "distill", (2,))
    x_1 = procedural("mixture").batch(torch.arange(64), 0).x
    times = module.times.sample(64, generator)
    path = sample_path(module.student.interpolant, torch.randn(64, 2, generator=generator), x_1, times.s)
    loss = module.objective(module.student, module.velocity(), path, times, None).per_sample.mean()
    loss.backward()
    assert module.own.carrier is not module.student and bool(torch.isfinite(loss))
    assert any(float(p.grad.abs().max()) > 0 for p in module.student.parameters() if p.grad is not None)
    assert all(p.grad is None for p in module.own.carrier.parameters())


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param((), id="own weights"),
        pytest.param(("ema.target_half_life=5",), id="averaged", marks=pytest.mark.slow),
    ],
)
def test_self_distillation_from_scratch_lowers_its_loss(extra, pretrain_yaml, run_python, tmp_path):
    """Through the command line, without any teacher. Labels leave little noise in the data velocity."""
    labelled = ("data.source=mixture-labelled", "student.args={width: 16, depth: 1, num_classes: 8}")
    rates = ("optimizer.lr=1e-2", "optimizer.muon_lr=3e-2")
    steps = ("max_steps=30", "batch_size=256", "evaluate.every_steps=30", "checkpoint.every_steps=30")
    run_dir = tmp_path / "run"
    done = run_python(
        "-m",
        "train",
        "distill",
        pretrain_yaml,
        f"run_dir={run_dir}",
        *SELF,
        *steps,
        *labelled,
        *rates,
        *extra,
    )
    assert done.returncode == 0, done.stderr
    with open(run_dir / "metrics.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert (run_dir / "checkpoints/step-00000030.ckpt").is_file()
    out = tmp_path / "out"
    exported = run_python("-m", "train", "export", run_dir, out)
    assert exported.returncode == 0, exported.stderr
    assert "lmd + flow_matching" in Path(out / "README.md").read_text()
