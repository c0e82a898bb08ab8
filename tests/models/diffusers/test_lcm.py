"""Models distilled to jump to clean data, as their scheduler tells; and U-Nets, which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fmtt
from fmtt.errors import UserError
from fmtt.models.diffusers.decoder import Decoder
from fmtt.models.diffusers.pretrained import FAMILIES, encode_prompts, load_flow_map, load_pipeline
from fmtt.models.diffusers.student import student_of
from tests.models.diffusers.conftest import MAKERS, conditions, diffusers

FMTTPipeline: Any = pytest.importorskip("fmtt.pipeline").FMTTPipeline
Folder = Callable[[str], str]
SHORT = {"height": 8, "width": 8, "max_sequence_length": 6}
ONLY_AHEAD = "few-step model knows jumps to t = 1 only: use it as lookahead_map"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_scheduler_tells_of_jumps_to_clean_data(name: str, folder: Folder):
    few = load_flow_map(folder(f"{name}_lcm"), height=8, width=8)
    plain = load_flow_map(folder(name), height=8, width=8)
    told = load_flow_map(folder(f"{name}_lcm"), height=8, width=8, few_step=False)
    assert few.network.few_step and not plain.network.few_step and not told.network.few_step
    x, cond = torch.randn(2, *few.data_shape), conditions(f"{name}_lcm", 2)
    assert torch.equal(few(x, 0.3, 1.0, cond), plain(x, 0.3, 1.0, cond))
    assert torch.equal(told.velocity(x, 0.3, cond), plain.velocity(x, 0.3, cond))
    with pytest.raises(UserError, match=ONLY_AHEAD):
        few.velocity(x, 0.3, cond)
    with pytest.raises(UserError, match="cannot be a teacher"):
        student_of(few)
    assert load_flow_map(folder(name), few_step=True).network.few_step


def test_an_lcm_lands_where_its_scheduler_does(folder: Folder):
    own = load_pipeline(folder("sd3_lcm"))
    own.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 4, 4)
    options: dict[str, Any] = {"num_inference_steps": 1, "latents": noise, **SHORT}
    theirs = own(["a cat", "a dog"], guidance_scale=1.0, output_type="pt", **options).images
    few = load_flow_map(folder("sd3_lcm"), height=8, width=8)
    cond = encode_prompts(own, ["a cat", "a dog"], max_sequence_length=6)
    with torch.no_grad():
        mine = Decoder(own.vae)(few(noise, 0.0, 1.0, cond))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)
    pipe = FMTTPipeline.from_pipe(own)
    piped = pipe(["a cat", "a dog"], output_type="pt", **options).images
    torch.testing.assert_close(piped, theirs, rtol=0, atol=2e-5)
    with pytest.raises(UserError, match=ONLY_AHEAD):
        pipe("a cat", num_inference_steps=2, **SHORT)

    scheduler = diffusers.FlowMatchLCMScheduler()
    for sigma in (0.9, 0.5, 0.1):
        scheduler.set_timesteps(sigmas=[sigma])
        scheduler.set_begin_index(0)
        with torch.no_grad():
            v = own.transformer(
                noise,
                timestep=scheduler.timesteps.expand(2),
                encoder_hidden_states=cond["prompt_embeds"],
                pooled_projections=cond["pooled_prompt_embeds"],
            ).sample
            wanted = scheduler.step(v, scheduler.timesteps[0], noise).prev_sample
            torch.testing.assert_close(few(noise, 1 - sigma, 1.0, cond), wanted, rtol=0, atol=1e-5)


def test_a_schnell_pipeline_draws_in_one_step_only():
    pipe = FMTTPipeline.from_pipe(MAKERS["schnell"]())
    assert pipe("a cat", num_inference_steps=1, output_type="pt", **SHORT).images.shape == (1, 3, 8, 8)
    with pytest.raises(UserError, match=ONLY_AHEAD):
        pipe("a cat", num_inference_steps=2, **SHORT)


def test_a_unet_is_refused_in_one_line(folder: Folder, tmp_path: Path):
    where = tmp_path / "lcm"
    (where / "unet").mkdir(parents=True)
    (where / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (where / "model_index.json").write_text('{"_class_name": "LatentConsistencyModelPipeline"}')
    for load in (load_flow_map, load_pipeline, fmtt.load, FMTTPipeline.from_pretrained):
        with pytest.raises(UserError, match="holds the U-Net of a diffusion model") as caught:
            load(str(where))
        assert "SANA-Sprint or one of them with a FlowMatchLCMScheduler" in str(caught.value)
        assert "\n" not in str(caught.value)
