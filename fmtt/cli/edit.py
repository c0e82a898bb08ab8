"""``fmtt edit MODEL PICTURE --prompt TEXT --reward ... --out DIR``: a given picture, tilted towards a reward.

Editing by words, where the reward is a question to a vision-language model::

    fmtt edit PIPELINE photo.png --prompt "a clock" --out runs/edit \\
        --reward 'vlm:model=Qwen/Qwen2.5-VL-3B-Instruct,question=Does the clock read 3:47?'
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from fmtt.cli.model import device_named, need_extra, need_pipeline
from fmtt.cli.output import Output
from fmtt.errors import UserError
from fmtt.rewards import build, parse, picture


def run(args: Namespace) -> None:
    """Write the edited pictures, best first, beside what was given, and summary.json."""
    need_extra("diffusers", "transformers", extra="diffusers")
    parse(args.reward)
    need_pipeline(args.model)
    image, mask = pictured(args.picture), None if args.mask is None else pictured(args.mask)
    out = Output(args.out)
    from fmtt.pipeline import FMTTPipeline

    device = device_named(args.device)
    pipe = FMTTPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(device)
    reward = build(args.reward, value_range=(0.0, 1.0), device=str(device), prompt=args.prompt)
    names = ("strength", "num_particles", "lookahead", "weights", "height", "width", "guidance_scale")
    edited = pipe(
        args.prompt,
        image=image,
        mask_image=mask,
        reward=reward,
        num_inference_steps=args.num_steps,
        chunk_size=args.chunk_size,
        generator=torch.Generator(device).manual_seed(args.seed),
        output_type="pt",
        **{name: getattr(args, name) for name in names},
    )
    images, weights = edited.images.cpu(), torch.softmax(edited.log_weights, 0).cpu()
    order = edited.rewards.cpu().argsort(descending=True)
    given = torch.nn.functional.interpolate(image, images.shape[2:], mode="bilinear", antialias=True)
    with torch.no_grad():
        before = float(reward(given.to(device), None))
    columns = {"samples": images, "log_weights": edited.log_weights, "rewards": edited.rewards}
    out.tensors("samples.safetensors", columns)
    out.picture("edited.png", torch.cat([given, images[order]]), (0.0, 1.0))
    results = {
        "base_law": edited.result.base_law,
        "reward_of_the_picture": before,
        "mean_reward": float((weights * edited.rewards.cpu().double()).sum()),
        "best_reward": float(edited.rewards.max()),
        "ess": edited.result.ess,
        "cost": edited.cost.as_dict(),
    }
    print(f"reward {before:.4g} -> {results['mean_reward']:.4g}. {results['base_law']}")
    out.finish(args, results)


def pictured(path: Path) -> Tensor:
    """A picture (1, 3, H, W) in [0, 1].

    Raises:
        UserError: when the file holds none.
    """
    image = picture.with_channels(picture.load(path), 3)
    if image.shape[0] != 3 or not bool(((image >= 0) & (image <= 1)).all()):
        raise UserError(f"{path} must hold grey or RGB values from 0 to 1")
    return image[None]
