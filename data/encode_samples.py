"""From captions and images to what training reads: latents, and prompts as the text encoders see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.counter import random_bits
from data.encode_prompts import PromptLength
from data.encode_source import Captioned, Damaged, PairShards, replacements
from data.index import Array
from data.write_set import Sample
from fmtt.errors import UserError
from fmtt.models.diffusers.decoder import Decoder
from fmtt.models.diffusers.family import NEGATIVE, SCALE, LatentTransformer
from fmtt.models.diffusers.pretrained import (
    compression,
    family_of,
    latent_shape,
    library,
    load_flow_map,
    load_pipeline,
)
from fmtt.models.diffusers.refusals import one_line
from fmtt.models.diffusers.steps import sample_through
from fmtt.models.diffusers.student import network_of

STAND_INS = 64
"""Most samples that are tried in place of a damaged one."""
LATENTS = ("images", "generate", "noise")


class Encoding(NamedTuple):
    """How samples are made.

    Attributes:
        model: folder or hub id of a diffusers pipeline.
        latents: "images": of the images; "generate": drawn from the model by Euler steps, one for each
            caption; "noise": standard normal, for objectives that start from noise alone.
        height, width: in pixels; the model's usual size if omitted.
        steps, shift, guidance_scale: of generated latents; noise levels are shifted as s l / (1 + (s - 1) l).
        negative_prompt: of families that are guided by two passes; kept once for the whole set.
        seed: of generated latents and noise.
        batch_size: samples encoded together. dtype: that the model computes in.
    """

    model: str
    latents: str = "images"
    height: int | None = None
    width: int | None = None
    steps: int = 28
    shift: float = 3.0
    guidance_scale: float | None = None
    negative_prompt: str = ""
    max_sequence_length: int | None = None
    seed: int = 0
    batch_size: int = 8
    dtype: str = "bfloat16"
    device: str = "cpu"
    max_bad_fraction: float = 0.01


class EncodedSamples:
    """The samples of a range, encoded when they are asked for, the same ones each time.

    Args:
        source: captions, and images where ``encoding.latents`` is "images".

    Attributes:
        x: shape and dtype of the latents. cond: those of the conditions.
        negative: the negative prompt's conditions (1, ...), for guided families.
        prompt_length: how many tokens of a caption are read, and how many captions were cut.
        problems: what could not be read, and was replaced by another sample of the source.

    Raises:
        UserError: when the model is missing, pickled or of no known family, or a size or length does not fit
            it.
    """

    def __init__(self, source: Captioned, encoding: Encoding) -> None:
        self.source, self.encoding = source, encoding
        self.problems: list[str] = []
        e, package = encoding, library()
        self.dtype: torch.dtype = getattr(torch, e.dtype)
        with one_line(e.model):
            config = package.AutoencoderKL.load_config(e.model, subfolder="transformer")
            self.family = family_of(config, e.model)
            factor = compression(package.AutoencoderKL.load_config(e.model, subfolder="vae"))
        shape = latent_shape(self.family, config, factor, e.height, e.width)
        self.size = (shape[1] * factor, shape[2] * factor)
        pipeline = load_pipeline(e.model, dtype=self.dtype, transformer=None)
        self.prompt_length = PromptLength(pipeline, e.max_sequence_length)
        self.pipeline: Any = pipeline.to(e.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.decoder = Decoder(self.pipeline.vae, max_batch=e.batch_size)
        self.network: LatentTransformer | None = None
        # Latents are of order 1 and bfloat16 has three digits; float16 holds them in the same space.
        self.x = Array(shape, "float32" if e.dtype == "float32" else "float16")
        with one_line(e.model):
            first = self._conditions(["a photograph"], guided=self.family.guided)
        self.negative = {name: value for name, value in first.items() if name.startswith(NEGATIVE)}
        self.cond = {
            name: Array(tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
            for name, value in first.items()
            if name not in self.negative
        }
        if e.latents == "generate":
            self._load_network()

    def _load_network(self) -> None:
        e = self.encoding
        flow_map = load_flow_map(
            e.model, latents=self.x.shape, guidance=e.guidance_scale, dtype=self.dtype, device=e.device
        )
        self.flow_map, self.network = flow_map, network_of(flow_map)
        if self.network.embeds_guidance(self.network.transformer) and e.guidance_scale is None:
            raise UserError(
                f"{e.model} is conditioned on a guidance scale: give --guidance-scale, such as 3.5"
            )
        if self.network.few_step:
            raise UserError(f"{e.model} is a few-step model without a velocity: use the model it came from")
        if self.negative:
            self.network.hold_negative(self.negative)

    @torch.no_grad()
    def _conditions(self, captions: list[str], *, guided: bool = False) -> dict[str, Tensor]:
        e = self.encoding
        options = {} if e.max_sequence_length is None else {"max_sequence_length": e.max_sequence_length}
        negative = e.negative_prompt if guided else None
        return self.family.encode(self.pipeline, captions, negative, options)

    def __call__(self, start: int, stop: int) -> Iterator[Sample]:
        size = self.encoding.batch_size
        for first in range(start, stop, size):
            yield from self._batch(range(first, min(first + size, stop)))

    @torch.no_grad()
    def _batch(self, indices: range) -> Iterator[Sample]:
        read = [self._readable(index) for index in indices]
        captions = [caption for _, caption, _ in read]
        self.prompt_length.count(captions)
        cond = self._conditions(captions)
        if self.encoding.latents == "images":
            images = torch.stack([image for _, _, image in read if image is not None])
            x = self.decoder.encode(images.to(self.encoding.device, self.dtype))
        else:
            x = self._noise(indices)
            if self.encoding.latents == "generate":
                x = self._generated(x, cond)
        x = x.to(getattr(torch, self.x.dtype)).cpu()
        cond = {name: value.cpu() for name, value in cond.items()}
        for row, (index, caption, _) in enumerate(read):
            meta = {"caption": caption, "from": self.source.name(index)}
            yield Sample(x[row], {name: value[row] for name, value in cond.items()}, meta)

    def _readable(self, wanted: int) -> tuple[int, str, Tensor | None]:
        """The sample ``wanted``, or the next that can be read: its number, caption and image."""
        for index in (wanted, *replacements(wanted, len(self.source), STAND_INS)):
            try:
                caption, image = self.source.caption(index), None
                if self.encoding.latents == "images":
                    assert isinstance(self.source, PairShards)
                    image = self.source.image(index, *self.size)
                return index, caption, image
            except Damaged as error:
                if index == wanted:
                    self._report(str(error))
        raise UserError(f"{self.problems[-1]}, nor can the {STAND_INS} after it be read; check the shards")

    def _report(self, problem: str) -> None:
        self.problems.append(problem)
        bad, most = len(self.problems), self.encoding.max_bad_fraction * len(self.source)
        if bad > most:
            raise UserError(
                f"{bad} of {len(self.source)} samples cannot be read, more than --max-bad-fraction="
                f"{self.encoding.max_bad_fraction:g} allows; the last is {problem}"
            )

    def _noise(self, indices: range) -> Tensor:
        """Standard normal latents (B, C, h, w), a function of the seed and each sample's number."""
        rows = []
        for index in indices:
            bits = int(random_bits(self.encoding.seed, index)[0] >> 1)
            rows.append(torch.randn(self.x.shape, generator=torch.Generator().manual_seed(bits)))
        return torch.stack(rows).to(self.encoding.device)

    def _generated(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        e = self.encoding
        levels = [1 - k / e.steps for k in range(e.steps + 1)]
        times = [1 - e.shift * level / (1 + (e.shift - 1) * level) for level in levels]
        if e.guidance_scale is not None:
            cond = {**cond, SCALE: x.new_full((len(x),), e.guidance_scale)}
        return sample_through(self.flow_map, x, cond, times)
