"""SANA-Sprint lands where its own scheduler does, looks ahead for SANA, and goes nowhere else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.__main__ import main
from fmtt.errors import UserError
from fmtt.models.diffusers import export
from fmtt.models.diffusers.decoder import Decoder
from fmtt.models.diffusers.pretrained import encode_prompts, load_flow_map, load_pipeline
from fmtt.models.diffusers.student import student_of
from fmtt.types import Cond
from tests.models.diffusers.conftest import MAKERS, conditions, diffusers

FMTTPipeline: Any = pytest.importorskip("fmtt.pipeline").FMTTPipeline
Folder = Callable[[str], str]
SHORT = {"height": 8, "width": 8, "max_sequence_length": 6}
ONLY_AHEAD = "few-step model knows jumps to t = 1 only: use it as lookahead_map"


def brightness(images: Tensor, cond: Cond | None = None) -> Tensor:
    return 4 * images.mean((1, 2, 3))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_one_step_of_sprint_is_its_own_pipelines_picture(folder: Folder):
    own = load_pipeline(folder("sana_sprint"))
    own.set_progress_bar_config(disable=True)
    own.check_inputs = lambda *a, **k: None  # asks for sizes that tiny models do not have
    noise = torch.randn(2, 4, 4, 4)
    for scale in (4.5, 2.0):
        theirs = own(
            ["a cat", "a dog"],
            num_inference_steps=1,
            intermediate_timesteps=None,
            guidance_scale=scale,
            latents=noise,
            use_resolution_binning=False,
            complex_human_instruction=None,
            output_type="pt",
            **SHORT,
        ).images
        cond = encode_prompts(own, ["a cat", "a dog"], guidance_scale=scale, max_sequence_length=6)
        sprint = load_flow_map(folder("sana_sprint"), height=8, width=8)
        with torch.no_grad():
            mine = Decoder(own.vae)(sprint(noise, 0.0, 1.0, cond))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)
        piped = FMTTPipeline.from_pipe(own)(
            ["a cat", "a dog"],
            num_inference_steps=1,
            guidance_scale=scale,
            latents=noise,
            output_type="pt",
            **SHORT,
        )
        torch.testing.assert_close(piped.images, theirs, rtol=0, atol=2e-5)
    assert theirs.std() > 0.01


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_sprint_lands_where_its_scheduler_does_from_any_time(folder: Folder, sigma_data: float):
    """SanaSprintPipeline's step, by hand, at the trigonometric angle of the same ratio of noise to data."""
    sprint = load_flow_map(folder("sana_sprint"), height=8, width=8)
    plain = diffusers.SanaTransformer2DModel.from_pretrained(folder("sana_sprint"), subfolder="transformer")
    cond, scheduler = conditions("sana_sprint", 2), diffusers.SCMScheduler(sigma_data=sigma_data)
    data, noise = torch.randn(2, 2, *sprint.data_shape)
    for angle in (1.5, 1.3, 0.6, 0.05):
        a = torch.tensor(angle)
        z = sigma_data * (a.cos() * data + a.sin() * noise)
        sigma = (a.sin() / (a.cos() + a.sin())).expand(2)
        level = sigma.view(-1, 1, 1, 1)
        r = (level**2 + (1 - level) ** 2).sqrt()
        with torch.no_grad():
            out = plain(
                z / sigma_data * r,
                encoder_hidden_states=cond["prompt_embeds"],
                encoder_attention_mask=cond["prompt_attention_mask"],
                guidance=cond["guidance_scale"] * plain.config.guidance_embeds_scale,
                timestep=sigma,
            ).sample
            velocity = sigma_data * ((1 - 2 * level) * (z / sigma_data * r) + r**2 * out) / r
            scheduler.set_timesteps(
                1, timesteps=[angle, 0.0], max_timesteps=None, intermediate_timesteps=None
            )
            wanted = scheduler.step(velocity, a, z).pred_original_sample / sigma_data
            t = 1 - sigma
            x = (1 - level) * data + level * noise
            torch.testing.assert_close(sprint(x, t, 1.0, cond), wanted, rtol=0, atol=1e-5)
            if 0.2 < angle < 1.4:  # neither the angle for the time nor the trigonometric point would do
                assert not torch.allclose(sprint(x, 1 - 2 * a / torch.pi, 1.0, cond), wanted, atol=1e-3)
                assert not torch.allclose(sprint(z / sigma_data, t, 1.0, cond), wanted, atol=1e-3)
    assert math.isclose(float(r.flatten()[0] * (a.cos() + a.sin())), 1.0, rel_tol=1e-6)


def test_gradients_pass_through_sprint(folder: Folder):
    """In x and in t, against finite differences; at t = 1 it is the identity."""
    sprint = load_flow_map(folder("sana_sprint"), height=8, width=8)
    cond, one = conditions("sana_sprint", 2), torch.ones(2)
    x = torch.randn(2, *sprint.data_shape, requires_grad=True)
    t = torch.tensor([0.3, 0.7], requires_grad=True)
    probe, v, h = torch.randn_like(x), torch.randn_like(x), 2e-3

    def projected(x: Tensor, t: Tensor) -> Tensor:
        return (sprint(x, t, one, cond) * probe).sum()

    d_x, d_t = torch.autograd.grad(projected(x, t), (x, t))
    assert torch.equal(sprint(x, one, one, cond), x)
    with torch.no_grad():
        along_x = float(projected(x + h * v, t) - projected(x - h * v, t)) / (2 * h)
        along_t = float(projected(x, t + h) - projected(x, t - h)) / (2 * h)
    assert float((d_x * v).sum()) == pytest.approx(along_x, rel=0.02)
    assert float(d_t.sum()) == pytest.approx(along_t, rel=0.02)


def test_sprint_takes_the_scale_that_it_is_given_or_its_own(folder: Folder):
    x, cond = torch.randn(2, 4, 4, 4), conditions("sana_sprint", 2, guided=False)

    def at(scale: float) -> dict[str, Tensor]:
        return {**cond, "guidance_scale": torch.full((2,), scale)}

    usual = load_flow_map(folder("sana_sprint"), height=8, width=8)
    other = load_flow_map(folder("sana_sprint"), height=8, width=8, guidance=2.0)
    assert torch.equal(usual(x, 0.2, 1.0, cond), usual(x, 0.2, 1.0, at(4.5)))
    assert torch.equal(other(x, 0.2, 1.0, cond), usual(x, 0.2, 1.0, at(2.0)))
    assert torch.equal(other(x, 0.2, 1.0, at(4.5)), usual(x, 0.2, 1.0, cond))
    assert not torch.allclose(usual(x, 0.2, 1.0, at(2.0)), usual(x, 0.2, 1.0, cond), atol=1e-4)


class Calls:
    """Rows that a transformer was called with, and those that were differentiated through."""

    def __init__(self, transformer: Any) -> None:
        self.forwards = self.backwards = 0
        transformer.register_forward_hook(self._seen)

    def _seen(self, module: Any, args: Any, out: Any) -> None:
        value = out[0]
        self.forwards += len(value)
        if value.requires_grad:
            value.register_hook(self._reversed)

    def _reversed(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@pytest.mark.parametrize("scale", [None, 3.0])
def test_sprint_looks_ahead_for_sana(scale: float | None, folder: Folder):
    pipe = FMTTPipeline.from_pipe(MAKERS["sana"]())
    sprint = load_flow_map(folder("sana_sprint"), height=8, width=8)
    base, ahead = Calls(pipe.transformer), Calls(sprint.network.transformer)
    out = pipe(
        "a cat",
        reward=brightness,
        num_particles=4,
        num_inference_steps=3,
        guidance_scale=scale,
        lookahead_map=sprint,
        weights="exact",
        generator=seeded(),
        output_type="pt",
        **SHORT,
    )
    assert bool(out.log_weights.isfinite().all()) and out.log_weights.std() > 0
    torch.testing.assert_close(out.rewards, brightness(out.images), rtol=0, atol=1e-5)
    doubled = 1 if scale is None else 2  # guidance by two passes is one forward of what the pipeline samples
    assert base.backwards == 0 and ahead.backwards == out.cost.backwards > 0
    assert base.forwards / doubled + ahead.forwards == out.cost.forwards
    assert ahead.forwards >= 4 * 3


def test_the_command_line_looks_ahead_by_sprint(folder: Folder, tmp_path: Path, capsys: Any):
    sana, sprint = folder("sana"), folder("sana_sprint")
    common = ["--prompt", "a cat", "--device", "cpu", "--reward", "brightness", "--num-particles", "2"]
    tilt = ["tilt", sana, *common, "--num-steps", "2", "--lookahead-map", sprint]
    assert main([*tilt, "--guidance-scale", "3", "--out", str(tmp_path / "t")]) == 0
    assert json.loads((tmp_path / "t" / "summary.json").read_text())["cost"]["backwards"] > 0
    sample = ["sample", sprint, "--prompt", "a cat", "--device", "cpu", "--num-samples", "1"]
    assert main([*sample, "--steps", "1", "--out", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s" / "samples.png").is_file()
    assert main(["info", sprint]) == 0 and "sana_sprint" in capsys.readouterr().out
    for refused in (
        [*sample, "--steps", "2", "--out", str(tmp_path / "x")],
        ["tilt", sprint, *common, "--num-steps", "2", "--out", str(tmp_path / "x")],
    ):
        assert main(refused) == 2
        error = capsys.readouterr().err
        assert ONLY_AHEAD in error and error.count("\n") == 1


def test_sprint_is_kept_and_loaded_as_what_it_is(folder: Folder, tmp_path: Path):
    sprint = load_flow_map(folder("sana_sprint"), height=8, width=8, guidance=3.0)
    export.save(sprint, tmp_path / "map", pretrained=folder("sana_sprint"))
    x, cond = torch.randn(2, *sprint.data_shape), conditions("sana_sprint", 2, guided=False)
    again = fmtt.load(tmp_path / "map")
    assert torch.equal(again(x, 0.3, 1.0, cond), sprint(x, 0.3, 1.0, cond))
    whole = fmtt.load(folder("sana_sprint"))
    assert whole.data_shape == (4, 8, 8) and whole.config["network"]["name"] == "sana_sprint"
    for flow_map in (again, whole):
        with pytest.raises(UserError, match=ONLY_AHEAD):
            flow_map(x, 0.3, 0.9, cond)
        with pytest.raises(UserError, match=ONLY_AHEAD):
            fmtt.sample(flow_map, 2, steps=2, cond=cond)
    base = fmtt.load(folder("sana"))
    plain = conditions("sana", 2, guided=False)
    own = load_flow_map(folder("sana"))
    x = torch.randn(2, *base.data_shape)
    assert torch.equal(base.velocity(x, 0.3, plain), own.velocity(x, 0.3, plain))
    assert base.config["kind"] == "velocity" and whole.config["kind"] == "flow_map"


def test_where_sprint_cannot_go(folder: Folder, tmp_path: Path):
    where = folder("sana_sprint")
    sprint = load_flow_map(where, height=8, width=8)
    x, cond = torch.randn(2, *sprint.data_shape), conditions("sana_sprint", 2)
    with pytest.raises(UserError, match=ONLY_AHEAD):
        sprint.velocity(x, 0.5, cond)
    with pytest.raises(UserError, match="cannot be a teacher"):
        student_of(sprint)
    with pytest.raises(UserError, match="is SANA-Sprint, which has no velocity: leave few_step out"):
        load_flow_map(where, few_step=False)
    with pytest.raises(UserError, match="SANA-Sprint always goes to t = 1"):
        load_flow_map(where, second_time="zero_init")
    with pytest.raises(UserError, match="holds SANA-Sprint, not family sana: set family to sana_sprint"):
        load_flow_map(where, family="sana")
    with pytest.raises(UserError, match="Transformer2DModel, not family sana_sprint: set family to sana$"):
        load_flow_map(folder("sana"), family="sana_sprint")
    pipe = FMTTPipeline.from_pipe(MAKERS["sana_sprint"]())
    with pytest.raises(UserError, match=ONLY_AHEAD):
        pipe("a cat", num_inference_steps=2, **SHORT)
    with pytest.raises(UserError, match=ONLY_AHEAD):
        pipe("a cat", reward=brightness, num_particles=2, num_inference_steps=2, **SHORT)
    pipe.flow_map = sprint
    with pytest.raises(UserError, match=ONLY_AHEAD):
        pipe.save_pretrained(tmp_path / "sampler")
    assert not (tmp_path / "sampler").exists()
