"""What loading a pipeline can come to, in one line with the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fmtt import hub
from fmtt.errors import UserError
from fmtt.quiet import quiet


@contextmanager
def one_line(where: str) -> Iterator[None]:
    """Turn what diffusers raises about ``where`` into one line with the remedy; its bars are left
    out, its warnings (weights that are missing, say) are not."""
    _refuse_other_kinds(where)
    try:
        with quiet("diffusers", "transformers", warnings=True), hub.cache_if_unreachable(where):
            yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{where} does not fit in memory: load it in bfloat16, or on a larger device"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, json.JSONDecodeError) as error:
        raise UserError(_explanation(where, error)) from error


def _refuse_other_kinds(where: str) -> None:
    """Refuse a folder whose network is a U-Net, as those of diffusion models and their LCMs are."""
    folder = Path(where).expanduser()
    if (folder / "unet").is_dir() and not (folder / "transformer").is_dir():
        raise UserError(
            f"{where} holds the U-Net of a diffusion model, on another path than flow models: give FLUX.1, "
            "SD3, SANA or Lumina 2, or to look ahead SANA-Sprint or one of them with a FlowMatchLCMScheduler"
        )


def _explanation(where: str, error: BaseException) -> str:
    folder = Path(where).expanduser()
    if folder.is_dir():
        weights = folder / "transformer"
        if not (weights / "config.json").is_file():
            return f"{where} has no transformer/config.json: give a folder that a pipeline was saved to"
        if not list(weights.glob("*.safetensors")):
            return f"{where} has no transformer/*.safetensors (pickles are not read): download it again"
    elif folder.exists() or where.startswith((".", "/", "~")):
        return f"there is no folder {where}: give one written by a pipeline's save_pretrained, or a hub id"
    elif (refusal := hub.refusal(where, error)) is not None:
        return refusal
    return f"{where} cannot be loaded: {hub.first_line(error)}"
