"""The pipeline from a given picture: diffusers' img2img and inpainting, then a tilt that says its law."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fmtt.errors import UserError
from fmtt.models.diffusers.decoder import Decoder
from fmtt.types import Cond
from tests.models.diffusers.conftest import MAKERS, diffusers

FMTTPipeline: Any = pytest.importorskip("fmtt.pipeline").FMTTPipeline

SIGMAS = [1.0, 0.8, 0.5, 0.2]
SHORT: dict[str, Any] = {"height": 8, "width": 8, "max_sequence_length": 6, "guidance_scale": 3.0}
SHORT |= {"num_inference_steps": 4, "output_type": "pt"}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def own() -> Any:
    made = MAKERS["flux"]()
    made.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    return made


@pytest.fixture
def pipe(own: Any) -> Any:
    return FMTTPipeline.from_pipe(own)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def mask() -> Tensor:
    """White in the right half."""
    return torch.cat([torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)], 3)


def redness(images: Tensor, cond: Cond | None = None) -> Tensor:
    return 4 * images[:, 0].mean((1, 2))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("masked", [False, True], ids=["img2img", "inpaint"])
def test_without_a_reward_it_is_diffusers_own(
    masked: bool, strength: float, own: Any, pipe: Any, image: Tensor, mask: Tensor, monkeypatch: Any
):
    """The same steps from the same noise; a picture's latents are the mean, not a draw."""
    posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(posterior, "sample", lambda self, generator=None: self.mode())
    given: dict[str, Any] = {"image": image, "strength": strength, "sigmas": SIGMAS, **SHORT}
    if masked:
        given["mask_image"] = mask
    kind = diffusers.FluxInpaintPipeline if masked else diffusers.FluxImg2ImgPipeline
    theirs = kind(**own.components)
    theirs.set_progress_bar_config(disable=True)
    wanted = theirs("a cat", generator=seeded(), **given).images
    noise = torch.randn(1, 4, 4, 4, generator=seeded())
    out = pipe("a cat", latents=noise, **given)
    torch.testing.assert_close(out.images, wanted, rtol=0, atol=1e-4)
    assert out.cost.forwards == {0.3: 2, 0.6: 3, 1.0: 4}[strength]


def test_a_tilt_starts_from_the_picture_and_says_so(pipe: Any, image: Tensor):
    out = pipe(
        ["a cat", "dogs"],
        image=torch.cat([image, image.flip(3)]),
        strength=0.5,
        reward=redness,
        num_particles=3,
        generator=seeded(),
        **SHORT,
    )
    assert out.images.shape == (6, 3, 8, 8) and bool(out.log_weights.isfinite().all())
    assert "the given samples noised by the interpolant to t=0.5" in out.result.base_law
    # Weights that are right for that law, of whose states the model's velocity knows nothing.
    assert out.result.base_law.startswith("Exact at any number of steps")
    assert len(out.result.history.t) == 2
    # With next to no noise the picture comes back, each prompt's own.
    near = pipe(
        ["a cat", "dogs"],
        image=torch.cat([image, image.flip(3)]),
        strength=1e-3,
        sigmas=[1.0, 0.5, 0.1, 1e-6],
        **{**SHORT, "output_type": "latent"},
    )
    clean = Decoder(pipe.vae).encode(torch.cat([image, image.flip(3)]))
    torch.testing.assert_close(near.images, clean, rtol=0, atol=1e-3)
    assert (clean[0] - clean[1]).abs().max() > 1e-2


@pytest.mark.parametrize("mode", ["tilt", "search"])
def test_under_a_mask_only_its_white_part_changes(mode: str, pipe: Any, image: Tensor, mask: Tensor):
    seen: list[Tensor] = []

    def told(pipeline: Any, step: int, sigma: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"])
        return tensors

    options: dict[str, Any] = {"keep": 1, "rounds": 1} if mode == "search" else {"callback_on_step_end": told}
    out = pipe(
        "a cat",
        image=image,
        mask_image=mask,
        strength=0.75,
        reward=redness,
        mode=mode,
        num_particles=3,
        generator=seeded(),
        velocity=pipe._map(8, 8).velocity,
        lookahead_map=pipe._map(8, 8),
        **options,
        **SHORT,
    )
    clean = Decoder(pipe.vae).encode(image)
    samples = out.result.samples
    assert samples.shape == (3, 4, 4, 4)
    torch.testing.assert_close(samples[..., :2], clean[..., :2].expand(3, -1, -1, -1))
    assert (samples[..., 2:] - clean[..., 2:]).abs().amin() > 0
    torch.testing.assert_close(out.rewards, redness(out.images), rtol=0, atol=1e-5)
    if mode == "tilt":
        assert [x.shape[1:] for x in seen] == [(4, 4, 4)] * 3
        torch.testing.assert_close(seen[-1][..., :2], samples[..., :2])
        assert (seen[0][..., :2] - samples[..., :2]).abs().max() > 0.1
        law = out.result.base_law
        assert "t=0.25" in law and "not the model's law given the rest" in law


def test_pictures_and_masks_may_be_tensors_or_arrays(pipe: Any, image: Tensor, mask: Tensor):
    colour = mask.repeat(1, 3, 1, 1)
    array, array_mask = (v[0].movedim(0, -1).numpy() for v in (image, colour))
    outs = [
        pipe("a cat", image=one, mask_image=two, generator=seeded(), **{**SHORT, "output_type": "latent"})
        for one, two in (
            (image, mask),
            (image[0], mask[0, 0]),
            ([image[0]], colour > 0),
            (array, array_mask),
            (array[None], array_mask[..., 0]),
        )
    ]
    for out in outs:
        torch.testing.assert_close(out.images, outs[0].images, rtol=0, atol=1e-6)


def test_wrong_arguments(pipe: Any, image: Tensor, mask: Tensor):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mask_image": mask}, "mask_image needs image"),
        ({"image": image, "strength": 0.0}, "strength must lie in"),
        ({"image": image, "mask_image": torch.zeros(1, 1, 8, 8)}, "has no white pixel"),
        ({"image": image.repeat(2, 1, 1, 1), "mask_image": mask}, "goes with one image"),
        ({"image": "a.png"}, "a picture must be a PIL image"),
        ({"image": image, "reward": redness, "t_start": 0.3}, "t_start contradicts image"),
        ({"image": image, "reward": redness, "times": "shifted:3"}, "times contradicts image"),
        ({"latents": torch.randn(1, 4, 4, 4), "reward": redness, "x_init": 0}, "x_init contradicts image"),
        ({"image": torch.rand(1, 4, 8, 8)}, "has not 1 or 3 channels"),
        ({"image": 255 * image}, "got values outside"),
        ({"image": image, "latents": torch.randn(1, 4, 2, 2)}, "latents must be rows of shape"),
        (
            {"image": image.repeat(2, 1, 1, 1), "latents": torch.randn(3, 4, 4, 4)},
            "latents must have 1 or 2 rows",
        ),
        ({"sigmas": SIGMAS, "reward": redness, "times": "shifted:3"}, "times contradicts sigmas"),
    ]
    for given, message in cases:
        with pytest.raises(UserError, match=message):
            pipe("a cat", **given, **SHORT)
