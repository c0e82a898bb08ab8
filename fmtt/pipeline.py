"""Steering a text-to-image model as a diffusers pipeline; needs the extra ``fmtt[diffusers]``.

pipe = FMTTPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", dtype=torch.bfloat16)
pipe.flow_map = fmtt.load("my-flow-map", dtype=torch.bfloat16)
out = pipe("a clock that reads 3:47", reward=my_reward, num_particles=8, num_inference_steps=16)
out.images, out.rewards, out.log_weights

Editing by words starts from a given picture and follows a question; ``fmtt edit`` does it at a shell:

reward = VisionLanguage("Qwen/Qwen2.5-VL-3B-Instruct", "Does the clock read 3:47?")
out = pipe("a clock", image=photo, strength=0.6, reward=reward, num_particles=8)
out.result.base_law  # the law that was tilted: here that of the picture noised to t = 0.4

``mask_image`` leaves free what is white in it and replaces the rest by the picture. For an edit that agrees
with the rest in law, add :class:`fmtt.rewards.inverse.Inpainting` to the reward instead.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from fmtt.errors import UserError
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.models.diffusers import editing, export, pretrained
from fmtt.models.diffusers.decoder import OUTPUTS, DecodedReward, Decoder, as_output
from fmtt.models.diffusers.refusals import one_line
from fmtt.models.diffusers.steps import StepEnd, ToldVelocity, sample_through, times_of
from fmtt.models.diffusers.student import network_of
from fmtt.quiet import quiet
from fmtt.steering.cost import Cost
from fmtt.steering.result import SearchResult, TiltResult
from fmtt.steering.search import search
from fmtt.steering.setup import particles
from fmtt.steering.tilt import tilt
from fmtt.types import Reward

if TYPE_CHECKING:
    Transformer = Autoencoder = diffusers.ModelMixin
else:  # from_pipe takes over models of the annotated classes only
    _names = [family.names for family in pretrained.FAMILIES.values()]
    Transformer = reduce(or_, [getattr(diffusers, own.transformer) for own in _names])
    Autoencoder = reduce(or_, [getattr(diffusers, own.vae) for own in _names])

MODES = ("tilt", "search")


@dataclass
class FMTTPipelineOutput(BaseOutput):
    """Images of P prompts, N each, prompt by prompt; what has no meaning in a mode is None.

    Attributes:
        images: as ``output_type`` says: a list of PIL images, an array (P*N, H, W, 3), or a tensor.
        rewards: (P*N,).
        log_weights: (P*N,), and ``log_z``, a scalar or (P,): of a tilt; a search has none.
        cost: what the run spent, decodes included.
        result: all that the run knows, with latents for samples.
    """

    images: Any
    rewards: Tensor | None = None
    log_weights: Tensor | None = None
    log_z: Tensor | None = None
    cost: Cost | None = None
    result: TiltResult | SearchResult | None = None


class FMTTPipeline(DiffusionPipeline):
    """Text-to-image by a flow map, with or without a reward, for every family of :data:`FAMILIES`.

    ``flow_map`` is a map over this pipeline's kind of latents (from :func:`fmtt.load`); without one, the
    pipeline's own transformer serves, a step of which is an Euler step. The transformer and the autoencoder
    are never offloaded, since gradients pass through them; text encoders are.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->transformer->vae"
    _exclude_from_cpu_offload = ["transformer", "vae"]
    _optional_components = ["text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"]

    def __init__(
        self,
        transformer: Transformer,
        vae: Autoencoder,
        scheduler: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        text_encoder_3: Any = None,
        tokenizer_3: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
        )
        self.flow_map: NeuralFlowMap | None = None

    @classmethod
    def from_pretrained(cls, where: Any, **options: Any) -> Any:
        """Of any pipeline of the families, from a folder or the hub; with the flow map saved there.

        Raises:
            UserError: when files are missing, pickled, or of no family known here.
        """
        with one_line(str(where)):
            given = {"use_safetensors": True, **pretrained.left_out(str(where), options), **options}
            pipeline = DiffusionPipeline.from_pretrained(where, **given)
            with quiet("diffusers"):
                steered = cls.from_pipe(pipeline, dtype=pipeline.transformer.dtype)
        own = Path(where) / export.FLOW_MAP
        if own.is_dir():
            steered.flow_map = export.attach(own, steered.transformer)
        return steered

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """Write the pipeline, the flow map's own weights in a folder beside its transformer.

        diffusers' own pipeline of the family opens the folder too, and has the parts but not the second time.

        Raises:
            UserError: for a flow map with unmerged adapters, or one that only looks ahead.
        """
        if self.flow_map is None:
            self._family_pipeline().save_pretrained(save_directory, **options)
            return
        network = network_of(self.flow_map)
        export.check_sampler(network)
        pipeline, scheduler = self._family_pipeline(), export.scheduler_of(self.flow_map)
        pipeline.register_modules(transformer=network.transformer, scheduler=scheduler)
        pipeline.save_pretrained(save_directory, **options)
        beside = Path(save_directory) / export.FLOW_MAP
        export.save(self.flow_map, beside, pretrained="..", own_transformer=False)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float = 0.6,
        num_inference_steps: int = 16,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        sigmas: Sequence[float] | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepEnd | None = None,
        max_sequence_length: int | None = None,
        reward: Reward | None = None,
        num_particles: int = 4,
        mode: str = "tilt",
        chunk_size: int | None = None,
        decode: dict[str, Any] | None = None,
        **steering: Any,
    ) -> FMTTPipelineOutput:
        """Make images.

        Args:
            prompt: one, or several; each is a population of its own.
            height, width: in pixels.
            image: a picture to edit, or one per prompt: PIL images, arrays or tensors in [0, 1].
            mask_image: white where ``image`` is painted anew; the rest is replaced by the picture, noised.
            strength: how much of ``image`` is lost, in (0, 1]: the noise level at the start, rounded up to a
                step. Of the steps the last ceil(strength * num_inference_steps) are taken.
            num_inference_steps: steps of the flow map, or K of the tilt or search.
            guidance_scale: w; None leaves guidance out, where the model can do without.
            num_images_per_prompt: without a reward; with one, ``num_particles`` says.
            latents: initial noise (rows, C, h, w).
            sigmas: noise levels of the steps, from 1 down, without the final 0; uniform if omitted.
            output_type: "pil", "np" (B, H, W, 3), "pt" (B, 3, H, W), both in [0, 1], or "latent".
            callback_on_step_end: called as (pipeline, step, sigma, {"latents": x}) after every step.
                Without a reward, what it returns under "latents" goes on; a tilt only tells (of the first
                ``chunk_size`` particles), and a search does not.
            reward: scores (B,) of images (B, 3, H, W) in [0, 1] and cond, which has ``prompt_index`` (B,).
            num_particles: per prompt.
            mode: "tilt", weighted samples of the tilted law, or "search", with ``keep`` and ``rounds``.
            chunk_size: samples per network call, and per decoding.
            decode: options of the :class:`Decoder` that the reward sees through (checkpoint, tiled, reduce).
            steering: of :func:`fmtt.tilt` or :func:`fmtt.search`: weights ("path" for an ``image``), chi, ...

        Raises:
            UserError: when arguments contradict each other.
        """
        self._check(mode, output_type, reward, callback_on_step_end, steering)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        flow_map = self._map(height, width)
        cond = pretrained.encode_prompts(
            self._family_pipeline(),
            prompts,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            max_sequence_length=max_sequence_length,
        )
        cond["prompt_index"] = torch.arange(len(prompts), device=self._execution_device)
        whole = Decoder(self.vae, max_batch=chunk_size)
        start = editing.begin(
            flow_map,
            whole,
            times_of(sigmas, num_inference_steps),
            flow_map.data_shape,
            image=image,
            mask_image=mask_image,
            strength=strength,
            latents=latents,
            copies=num_images_per_prompt if reward is None else num_particles,
            factor=pretrained.compression(self.vae.config),
            generator=generator,
            device=self._execution_device,
        )
        free = start.free(flow_map)
        shared: dict[str, Any] = {"cond": cond, "generator": generator, "dtype": torch.float32}
        shared |= {"device": self._execution_device, "num_populations": len(prompts), **start.particles}
        told = None if callback_on_step_end is None else self._told(callback_on_step_end, start)
        if reward is None:
            batch = particles(free, num_images_per_prompt, **shared)
            x = sample_through(free, batch.x, batch.cond, start.times, chunk_size, told)
            cost = Cost(forwards=x.shape[0] * (len(start.times) - 1), populations=len(prompts))
            return FMTTPipelineOutput(self._images(start.whole(x, 1.0), whole, output_type, cost), cost=cost)
        decoder = Decoder(self.vae, **{"max_batch": chunk_size, **(decode or {})})
        steps = len(start.times) - 1
        shared |= {"num_particles": num_particles, "num_steps": steps, "chunk_size": chunk_size}
        if image is not None and mode == "tilt":  # "exact" takes the start for the model's own law there
            shared["weights"] = "path"
        shared |= start.steering(steering, sigmas)
        if sigmas is not None or image is not None:
            shared |= {"times": torch.tensor(start.times, dtype=torch.float64)}
        field: Any = shared.get("velocity") or free.velocity
        if told is not None:
            shared["velocity"] = field = ToldVelocity(field, told)
        run = search if mode == "search" else tilt
        result = run(free, start.reward(DecodedReward(reward, decoder)), **shared)
        if isinstance(field, ToldVelocity):
            field.finish(steps, result.samples)
        result.cost.decodes += decoder.decodes
        law = result.base_law + (start.law if mode == "tilt" else "")
        result = replace(result, samples=start.whole(result.samples, 1.0), base_law=law)
        images = self._images(result.samples, whole, output_type, result.cost)
        weights: dict[str, Any] = {}
        if isinstance(result, TiltResult):
            weights = {"log_weights": result.log_weights, "log_z": result.log_z}
        return FMTTPipelineOutput(images, result.rewards, cost=result.cost, result=result, **weights)

    def _check(self, mode: str, output_type: str, reward: Any, callback: Any, steering: Any) -> None:
        if mode not in MODES:
            raise UserError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if output_type not in OUTPUTS:
            raise UserError(f"output_type must be one of {', '.join(OUTPUTS)}, got {output_type!r}")
        if reward is None and steering:
            raise UserError(f"{next(iter(steering))} needs a reward")
        if callback is not None and (mode == "search" or steering.get("lookahead") in ("euler", "ode")):
            raise UserError(
                "callback_on_step_end goes with mode='tilt' and look-aheads other than euler and ode"
            )

    def _map(self, height: int | None, width: int | None) -> NeuralFlowMap:
        """The flow map, for latents of the size that is asked for."""
        sized = pretrained.sized(self.flow_map, self.components, height, width)
        return sized.to(self._execution_device).eval()

    def _family_pipeline(self) -> Any:
        return pretrained.family_pipeline(self.components)

    def _told(self, callback: StepEnd, start: editing.Begin) -> Callable[[int, float, Tensor], Tensor]:
        def told(step: int, sigma: float, x: Tensor) -> Tensor:
            latents = start.whole(x, start.times[step + 1])
            answer = callback(self, step, sigma, {"latents": latents}) or {}
            return start.part(answer.get("latents", latents))

        return told

    @torch.no_grad()
    def _images(self, latents: Tensor, decoder: Decoder, output_type: str, cost: Cost) -> Any:
        if output_type == "latent":
            return latents
        cost.decodes += latents.shape[0]
        return as_output(decoder(latents).float(), output_type)
