"""What every family must do: be the plain transformer in our convention, and carry a second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.flow.calculus import jvp, partial_t
from fmtt.flow.derivative import FiniteDifference, using
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.diffusers.flux import pack, positions, unpack
from fmtt.models.diffusers.layer_norm import TangentLayerNorm
from fmtt.models.diffusers.pretrained import FAMILIES, encode_prompts, load_flow_map, load_pipeline
from fmtt.models.diffusers.student import student_of
from fmtt.tensor import expand_like
from tests.models.diffusers.conftest import WIDTH, conditions, diffusers

Folder = Callable[[str], str]
every_family = pytest.mark.parametrize("name", FAMILIES)
ROWS = 2


def draw(flow_map: NeuralFlowMap) -> tuple[Tensor, Tensor, Tensor]:
    """x, s and t; 1 - (1 - s) is s to the last bit."""
    x = torch.randn(ROWS, *flow_map.data_shape)
    return x, torch.tensor([0.1875, 0.5625]), torch.tensor([0.875, 0.6875])


def trained(student: NeuralFlowMap) -> NeuralFlowMap:
    """The student with its second time's embedding as training would leave it: not zero."""
    with torch.no_grad():
        for key, weight in student.named_parameters():
            if "second_time" in key:
                weight.add_(0.3 * torch.randn_like(weight))
    return student


def plain_call(name: str, transformer: Any, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """v_sigma by hand, as diffusers' pipelines call their transformers."""
    text = cond["prompt_embeds"]
    if name == "flux":
        pipeline = diffusers.FluxPipeline
        B, C, H, W = x.shape
        out = transformer(
            hidden_states=pipeline._pack_latents(x, B, C, H, W),
            timestep=sigma,
            guidance=cond["guidance_scale"],
            pooled_projections=cond["pooled_prompt_embeds"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3),
            img_ids=pipeline._prepare_latent_image_ids(B, H // 2, W // 2, "cpu", torch.float32),
        ).sample
        return pipeline._unpack_latents(out, 2 * H, 2 * W, 2)
    if name == "lumina2":  # which its pipeline negates
        mask = cond["prompt_attention_mask"]
        return -transformer(x, 1 - sigma, text, mask).sample
    options: dict[str, Any] = {"encoder_hidden_states": text, "timestep": 1000 * sigma}
    if name == "sd3":
        return transformer(x, pooled_projections=cond["pooled_prompt_embeds"], **options).sample
    return transformer(x, encoder_attention_mask=cond["prompt_attention_mask"], **options).sample


def guided_call(name: str, transformer: Any, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """With the negative prompt's half first in one batch, as diffusers' pipelines do."""
    if name == "flux":
        return plain_call(name, transformer, x, sigma, cond)
    both = {key: torch.cat([cond[f"negative_{key}"], cond[key]]) for key in FAMILIES[name].names.conditions}
    weak, full = plain_call(name, transformer, torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
    return weak + expand_like(cond["guidance_scale"], x) * (full - weak)


@every_family
def test_velocity_is_the_plain_transformer_with_its_sign_turned(name: str, folder: Folder):
    flow_map = load_flow_map(folder(name), family=name, height=16, width=8)
    transformer_class = getattr(diffusers, FAMILIES[name].names.transformer)
    transformer = transformer_class.from_pretrained(folder(name), subfolder="transformer")
    x, t, _ = draw(flow_map)
    assert flow_map.data_shape == (4, 8, 4)
    for guided in (True, False):
        if not guided and name == "flux":
            continue
        cond = conditions(name, ROWS, guided=guided)
        with torch.no_grad():
            expected = (guided_call if guided else plain_call)(name, transformer, x, 1 - t, cond)
            torch.testing.assert_close(flow_map.velocity(x, t, cond), -expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.1


@every_family
def test_an_untrained_student_is_its_teachers_euler_step(name: str, folder: Folder):
    teacher = load_flow_map(folder(name), height=8, width=8)
    x, s, t = draw(teacher)
    cond = conditions(name, ROWS)
    step = x + expand_like(t - s, x) * teacher.velocity(x, s, cond)
    student = student_of(teacher, second_time="zero_init")
    assert torch.equal(student(x, s, t, cond), step)
    assert not torch.allclose(trained(student)(x, s, t, cond), step, atol=1e-4)
    assert torch.equal(student(x, s, s, cond), x)
    averaged = student_of(teacher, second_time="averaged")
    assert torch.equal(averaged.velocity(x, s, cond), teacher.velocity(x, s, cond))
    assert not torch.allclose(averaged(x, s, t, cond), step, atol=1e-4)


@every_family
def test_each_sample_has_its_own_times_and_prompt(name: str, folder: Folder):
    student = trained(student_of(load_flow_map(folder(name), height=8, width=8)))
    x, s, t = draw(student)
    cond = conditions(name, ROWS)
    rows = [
        student(x[i : i + 1], s[i], t[i], {k: v[i : i + 1] for k, v in cond.items()}) for i in range(ROWS)
    ]
    torch.testing.assert_close(student(x, s, t, cond), torch.cat(rows), rtol=0, atol=1e-5)


EARLY = {
    "flux": "transformer.x_embedder.weight",
    "sd3": "transformer.context_embedder.weight",
    "sana": "transformer.caption_projection.linear_1.weight",
    "lumina2": "transformer.x_embedder.weight",
}
"""A weight before the first block: its gradient passes through everything."""


@every_family
def test_derivatives_pass_through_the_network(name: str, folder: Folder):
    """The derivative in t, and a gradient taken through a tangent, against finite differences."""
    student = trained(student_of(load_flow_map(folder(name), height=8, width=8)))
    x, s, t = draw(student)
    cond = conditions(name, ROWS)
    value, tangent = partial_t(student, x, s, t, cond)
    with torch.no_grad(), using(FiniteDifference(step=3e-4)):
        assert (value - student(x, s, t, cond)).abs().max() < 1e-5
        difference = partial_t(student, x, s, t, cond)[1]
    assert (tangent - difference).norm() < 5e-3 * difference.norm()

    direction, probe = torch.randn_like(x), torch.randn_like(x)

    def along() -> Tensor:
        def at(x_: Tensor) -> Tensor:
            return student.average_velocity(x_, s, t, cond)

        return (jvp(at, (x,), (direction,))[1] * probe).sum()

    weight, h = student.network.get_parameter(EARLY[name]), 1e-3
    gradient = torch.autograd.grad(along(), weight)[0]
    change = torch.randn_like(weight)
    with torch.no_grad():
        weight.add_(h * change)
        up = float(along())
        weight.sub_(2 * h * change)
        expected = (up - float(along())) / (2 * h)
    assert abs(float((gradient * change).sum()) - expected) < 0.01 * abs(expected)


def test_a_fused_layer_norm_would_give_another_gradient_through_its_tangent():
    """The companion: what TangentLayerNorm is there for."""
    x, v = torch.randn(3, 8), torch.randn(3, 8)
    probe = torch.randn(3, 8)

    def gradient(norm: torch.nn.Module) -> Tensor:
        own = x.clone().requires_grad_()
        return torch.autograd.grad((jvp(norm, (own,), (v,))[1] * probe).sum(), own)[0]

    plain, written = torch.nn.LayerNorm(8), TangentLayerNorm(8)
    h = 1e-2
    difference = torch.zeros_like(x)
    with torch.no_grad():
        for i in range(x.numel()):
            shift = torch.zeros(x.numel()).index_fill(0, torch.tensor(i), h).reshape(x.shape)
            up, down = (jvp(written, (x + k * shift,), (v,))[1] * probe for k in (1, -1))
            difference.view(-1)[i] = (up.sum() - down.sum()) / (2 * h)
    assert (gradient(written) - difference).norm() < 1e-2 * difference.norm()
    assert (gradient(plain) - difference).norm() > 0.05 * difference.norm()
    assert torch.equal(plain(x), written(x))


@every_family
def test_bfloat16_weights_take_and_give_float32_particles(name: str, folder: Folder):
    exact = load_flow_map(folder(name), height=8, width=8)
    narrow = load_flow_map(folder(name), height=8, width=8, dtype=torch.bfloat16)
    x, s, t = draw(exact)
    cond = conditions(name, ROWS)
    out = narrow(x, s, t, cond)
    assert out.dtype == torch.float32 and narrow.network.dtype == torch.bfloat16
    assert (out - exact(x, s, t, cond)).norm() < 0.1 * (exact(x, s, t, cond) - x).norm()


def test_packing_is_diffusers_own_and_undone():
    x = torch.randn(2, 3, 4, 6)
    tokens = pack(x)
    assert torch.equal(tokens, diffusers.FluxPipeline._pack_latents(x, 2, 3, 4, 6))
    assert torch.equal(unpack(tokens, 4, 6), x)
    wanted = diffusers.FluxPipeline._prepare_latent_image_ids(2, 2, 3, "cpu", torch.float32)
    assert torch.equal(positions(4, 6, x), wanted)


def test_schnell_jumps_to_the_end_and_nowhere_else(folder: Folder):
    schnell = load_flow_map(folder("schnell"), height=8, width=8)
    x, s, t = draw(schnell)
    cond = conditions("schnell", ROWS)
    assert schnell(x, s, 1.0, cond).isfinite().all()
    for call in (lambda: schnell(x, s, t, cond), lambda: schnell.velocity(x, s, cond)):
        with pytest.raises(UserError, match="few-step model knows jumps to t = 1 only"):
            call()
    with pytest.raises(UserError, match="cannot be a teacher"):
        student_of(schnell)
    as_velocity = load_flow_map(folder("schnell"), height=8, width=8, few_step=False)
    assert as_velocity.velocity(x, s, cond).isfinite().all()


def test_conditions_that_are_missing_are_named(folder: Folder):
    flux, sd3 = (load_flow_map(folder(name), height=8, width=8) for name in ("flux", "sd3"))
    x, s, _ = draw(flux)
    cond = conditions("flux", ROWS)
    with pytest.raises(UserError, match="needs cond\\['pooled_prompt_embeds'\\]"):
        flux.velocity(x, s, {"prompt_embeds": cond["prompt_embeds"]})
    del cond["guidance_scale"]
    with pytest.raises(UserError, match="conditioned on cond\\['guidance_scale'\\]"):
        flux.velocity(x, s, cond)
    given = load_flow_map(folder("flux"), height=8, width=8, guidance=3.5)
    scale = {**cond, "guidance_scale": torch.full((ROWS,), 3.5)}
    assert torch.equal(given.velocity(x, s, cond), flux.velocity(x, s, scale))
    plain = conditions("sd3", ROWS, guided=False) | {"guidance_scale": torch.ones(ROWS)}
    with pytest.raises(UserError, match="needs cond\\['negative_prompt_embeds'\\] too"):
        sd3.velocity(x, s, plain)
    with pytest.raises(UserError, match="has 1 rows for 2 samples"):
        sd3.velocity(x, s, {**plain, "prompt_embeds": plain["prompt_embeds"][:1]})


@every_family
def test_own_guidance_takes_one_pass_and_no_negative_prompt(name: str, folder: Folder):
    teacher = load_flow_map(folder(name), height=8, width=8)
    if name == "flux":
        with pytest.raises(UserError, match="has a guidance embedding already"):
            student_of(teacher, own_guidance=True)
        return
    student = student_of(teacher, own_guidance=True)
    x, s, _ = draw(teacher)
    cond = conditions(name, ROWS)
    plain = {key: v for key, v in cond.items() if key in FAMILIES[name].names.conditions}
    assert torch.equal(student.velocity(x, s, cond), teacher.velocity(x, s, plain))


@every_family
def test_prompts_become_the_conditions_that_the_network_needs(name: str, folder: Folder):
    pipeline = load_pipeline(folder(name))
    flow_map = load_flow_map(folder(name), height=8, width=8)
    x, s, _ = draw(flow_map)
    cond = encode_prompts(pipeline, ["a cat", "dogs"], guidance_scale=3.0, max_sequence_length=6)
    assert {len(value) for value in cond.values()} == {2}
    assert ("negative_prompt_embeds" in cond) is (name != "flux")
    velocity = flow_map.velocity(x, s, cond)
    other = encode_prompts(pipeline, ["a cat", "hens"], guidance_scale=3.0, max_sequence_length=6)
    changed = flow_map.velocity(x, s, other)
    torch.testing.assert_close(changed[0], velocity[0], rtol=0, atol=1e-5)
    assert (changed[1] - velocity[1]).abs().max() > 1e-4


def test_a_prompt_longer_than_lumina2_has_positions_for_is_refused(folder: Folder):
    flow_map = load_flow_map(folder("lumina2"))
    network: Any = flow_map.network
    places: int = network.transformer.config.axes_lens[0]
    x = torch.randn(1, *flow_map.data_shape)
    for length, fits in ((places - 1, True), (places, False)):
        cond = {
            "prompt_embeds": torch.randn(1, length, WIDTH),
            "prompt_attention_mask": torch.ones(1, length, dtype=torch.long),
        }
        if fits:
            assert bool(flow_map(x, 0.0, 0.5, cond).isfinite().all())
            continue
        with pytest.raises(UserError, match=f"has {places} tokens, .* room for {places - 1}: shorten it"):
            flow_map(x, 0.0, 0.5, cond)
