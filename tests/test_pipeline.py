"""The pipeline: diffusers' conventions, and the same numbers as the functions behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.errors import UserError
from fmtt.models.diffusers.decoder import Decoder
from fmtt.models.diffusers.export import base_of
from fmtt.models.diffusers.pretrained import FAMILIES, encode_prompts
from fmtt.models.diffusers.student import Lora, merge, student_of, teacher_of, trained_parameters
from fmtt.types import Cond
from tests.models.diffusers.conftest import MAKERS, conditions, diffusers

FMTTPipeline: Any = pytest.importorskip("fmtt.pipeline").FMTTPipeline

SHORT = {"height": 8, "width": 8, "max_sequence_length": 6}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


@pytest.fixture
def pipe() -> Any:
    return FMTTPipeline.from_pipe(MAKERS["flux"]())


def redness(images: Tensor, cond: Cond | None = None) -> Tensor:
    assert images.shape[1] == 3 and images.min() >= 0 and images.max() <= 1
    return 4 * images[:, 0].mean((1, 2))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


WORDS = ["a cat", "a dog"]


def theirs(own: Any, name: str, noise: Tensor, **options: Any) -> Tensor:
    """Pictures of diffusers' own pipeline from the same latents (2, 4, 4, 4)."""
    own.set_progress_bar_config(disable=True)
    options["latents"] = own._pack_latents(noise, 2, 4, 4, 4) if name == "flux" else noise
    if name == "sana":
        options |= {"use_resolution_binning": False, "complex_human_instruction": None}
    if name == "lumina2":
        options |= {"cfg_normalization": False}
    if name in ("sana", "lumina2"):
        own.check_inputs = lambda *a, **k: None  # asks for sizes that tiny models do not have
    return own(WORDS, guidance_scale=3.0, output_type="pt", **SHORT, **options).images


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_equals_diffusers_own_pipeline(name: str):
    """A model without a second time takes Euler steps: those of diffusers at the same noise levels."""
    own: Any = MAKERS[name]()
    pipe = FMTTPipeline.from_pipe(own)
    noise = torch.randn(2, 4, 4, 4)
    options: dict[str, Any] = {"num_inference_steps": 3, "sigmas": [1.0, 0.7, 0.3]}
    out = pipe(WORDS, guidance_scale=3.0, latents=noise, output_type="pt", **SHORT, **options)
    assert out.log_weights is None and out.cost.forwards == 6 and out.cost.decodes == 2
    own.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    torch.testing.assert_close(out.images, theirs(own, name, noise, **options), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_flow_map_runs_in_diffusers_own_pipeline(name: str, tmp_path: Any):
    """An untrained map's steps are Euler steps, which the saved scheduler takes at the same noise levels."""
    pipe = FMTTPipeline.from_pipe(MAKERS[name]())
    pipe.flow_map = student_of(pipe._map(8, 8))
    pipe.save_pretrained(tmp_path / "map")
    plain = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "map", dtype=torch.float32)
    assert type(plain).__name__ == FAMILIES[name].names.pipeline
    noise = torch.randn(2, 4, 4, 4)
    for steps in (1, 3):
        options: dict[str, Any] = {"num_inference_steps": steps}
        out = pipe(WORDS, guidance_scale=3.0, latents=noise, output_type="pt", **SHORT, **options)
        torch.testing.assert_close(out.images, theirs(plain, name, noise, **options), rtol=0, atol=1e-4)


def test_a_tilt_with_four_particles(pipe: Any):
    pipe.flow_map = student_of(pipe._map(8, 8), lora=Lora(rank=2))
    with torch.no_grad():
        for weight in trained_parameters(pipe.flow_map).values():
            weight.add_(0.05 * torch.randn_like(weight))
    options: dict[str, Any] = {"num_inference_steps": 3, "num_particles": 4, "guidance_scale": 3.0}
    out = pipe("a cat", reward=redness, generator=seeded(), **options, **SHORT)
    assert len(out.images) == 4 and out.images[0].size == (8, 8)
    for row in (out.rewards, out.log_weights):
        assert row is not None and row.shape == (4,) and bool(row.isfinite().all())
    pictures = pipe("a cat", reward=redness, generator=seeded(), output_type="pt", **options, **SHORT)
    torch.testing.assert_close(pictures.rewards, redness(pictures.images), rtol=0, atol=1e-5)

    cond = encode_prompts(pipe._family_pipeline(), ["a cat"], guidance_scale=3.0, max_sequence_length=6)
    decoder = Decoder(pipe.vae)
    flow_map = pipe._map(8, 8)
    direct = fmtt.tilt(
        flow_map,
        lambda x, cond: redness(decoder(x)),
        num_particles=4,
        num_steps=3,
        cond=cond,
        dtype=torch.float32,
        generator=seeded(),
    )
    torch.testing.assert_close(pictures.result.samples, direct.samples, rtol=0, atol=1e-5)
    torch.testing.assert_close(pictures.log_weights, direct.log_weights, rtol=0, atol=1e-4)
    assert pictures.cost.decodes == decoder.decodes + 4

    chunked = pipe(
        "a cat", reward=redness, generator=seeded(), chunk_size=2, output_type="latent", **options, **SHORT
    )
    torch.testing.assert_close(chunked.images, direct.samples, rtol=0, atol=1e-4)
    taught = pipe(
        "a cat",
        reward=redness,
        generator=seeded(),
        velocity=teacher_of(flow_map).velocity,
        weights="path",
        lookahead="denoiser",
        **options,
        **SHORT,
    )
    assert bool(taught.log_weights.isfinite().all())


def test_several_prompts_are_populations_of_their_own(pipe: Any):
    seen = set()

    def reward(images: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None
        seen.update(cond["prompt_index"].tolist())
        return redness(images)

    out = pipe(
        ["a cat", "dogs"],
        reward=reward,
        mode="search",
        keep=1,
        rounds=1,
        num_particles=2,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=seeded(),
        output_type="np",
        **SHORT,
    )
    assert seen == {0, 1} and out.images.shape == (4, 8, 8, 3)
    assert out.log_weights is None and out.rewards.shape == (4,)


def test_callbacks(pipe: Any):
    told: list[tuple[int, float]] = []

    def callback(pipeline: Any, step: int, sigma: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        told.append((step, round(sigma, 4)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else tensors

    options: dict[str, Any] = {"guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "latent"}
    out = pipe("a cat", callback_on_step_end=callback, **options, **SHORT)
    assert told == [(0, 1.0), (1, 0.5)] and not out.images.any()
    told.clear()
    pipe("a cat", reward=redness, num_particles=2, callback_on_step_end=callback, **options, **SHORT)
    assert told == [(0, 1.0), (1, 0.5)]


def test_schnell_looks_ahead_for_another_model():
    pipe = FMTTPipeline.from_pipe(MAKERS["flux"]())
    schnell = FMTTPipeline.from_pipe(MAKERS["schnell"]())
    few = schnell._map(8, 8)
    few.network.few_step = True
    with pytest.raises(UserError, match="few-step model"):
        few.velocity(torch.randn(1, 4, 4, 4), 0.5, conditions("schnell", 1))
    out = pipe(
        "a cat",
        reward=redness,
        num_particles=2,
        num_inference_steps=2,
        guidance_scale=3.0,
        lookahead_map=few,
        output_type="pt",
        **SHORT,
    )
    assert bool(out.log_weights.isfinite().all())


def test_wrong_arguments(pipe: Any):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mode": "guess"}, "mode must be one of tilt, search"),
        ({"output_type": "gif"}, "output_type must be one of"),
        ({"lookahead": "none"}, "lookahead needs a reward"),
        ({"sigmas": [0.2, 0.7]}, "sigmas must be 2 falling numbers"),
        ({"height": 9}, "height must be a multiple of 4"),
        ({"guidance_scale": None}, "conditioned on cond"),
    ]
    for change, message in cases:
        given: dict[str, Any] = {"guidance_scale": 3.0, "num_inference_steps": 2, **SHORT, **change}
        with pytest.raises(UserError, match=message):
            pipe("a cat", **given)
    sd3 = FMTTPipeline.from_pipe(MAKERS["sd3"]())
    pipe.flow_map = sd3._map(8, 8)
    with pytest.raises(UserError, match="flow_map is of family sd3, the pipeline of flux"):
        pipe("a cat", **SHORT)


def test_saved_and_opened_again(pipe: Any, tmp_path: Any):
    options: dict[str, Any] = {"guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "pt", **SHORT}
    MAKERS["flux"]().save_pretrained(tmp_path / "flux")
    again = FMTTPipeline.from_pretrained(tmp_path / "flux")
    a, b = (p("a cat", generator=seeded(), **options).images for p in (pipe, again))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)

    pipe.flow_map = student_of(pipe._map(8, 8), lora=Lora(rank=2))
    with torch.no_grad():
        for weight in trained_parameters(pipe.flow_map).values():
            weight.add_(0.1 * torch.randn_like(weight))
    steered = pipe("a cat", generator=seeded(), **options).images
    with pytest.raises(UserError, match="merge them first"):
        pipe.save_pretrained(tmp_path / "map")
    merge(pipe.flow_map)
    pipe.save_pretrained(tmp_path / "map")
    opened = FMTTPipeline.from_pretrained(tmp_path / "map")
    assert opened.flow_map is not None and opened.flow_map.network.transformer is opened.transformer
    again = opened("a cat", generator=seeded(), **options).images
    torch.testing.assert_close(again, steered, rtol=0, atol=1e-4)
    assert (again - a).abs().max() > 1e-3
    # The folder itself is the flow map's too, and no plain velocity model.
    x = torch.randn(2, *pipe.flow_map.data_shape, generator=seeded())
    cond = encode_prompts(pipe._family_pipeline(), ["a cat"], guidance_scale=3.0, max_sequence_length=6)
    cond = {name: value.expand(2, *value.shape[1:]) for name, value in cond.items()}
    loaded = fmtt.load(tmp_path / "map")
    torch.testing.assert_close(loaded(x, 0.0, 1.0, cond), pipe.flow_map(x, 0.0, 1.0, cond), rtol=0, atol=1e-4)
    assert base_of(tmp_path / "map", loaded.config) == str(tmp_path / "map")
    plain = diffusers.FluxPipeline.from_pretrained(tmp_path / "map")
    assert isinstance(plain.scheduler, diffusers.FlowMatchEulerDiscreteScheduler)


def test_diffusers_flow_map_scheduler_takes_the_same_steps(pipe: Any):
    """v = -u handed to FlowMapEulerDiscreteScheduler is fmtt.sample, at any number of steps."""
    flow_map = student_of(pipe._map(8, 8))
    with torch.no_grad():
        for name, weight in flow_map.named_parameters():
            if "second_time" in name:
                weight.add_(0.3 * torch.randn_like(weight))
        cond = encode_prompts(pipe._family_pipeline(), ["a cat"], guidance_scale=3.0, max_sequence_length=6)
        for steps in (1, 3):
            wanted = fmtt.sample(flow_map, 2, steps=steps, cond=cond, generator=seeded(), dtype=torch.float32)
            x = torch.randn(2, 4, 4, 4, generator=seeded())
            scheduler = diffusers.FlowMapEulerDiscreteScheduler()
            scheduler.set_timesteps(steps)
            rows = {name: value.expand(2, *value.shape[1:]) for name, value in cond.items()}
            for k, timestep in enumerate(scheduler.timesteps):
                s, t = (1 - float(scheduler.sigmas[j]) for j in (k, k + 1))
                v = -flow_map.average_velocity(x, s, t, rows)
                x = scheduler.step(v, timestep, x).prev_sample
            torch.testing.assert_close(x, wanted, rtol=0, atol=1e-5)
