"""Pretrained parts from a folder or the hub: safetensors only, complete or refused, errors in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmtt import hub
from fmtt.errors import UserError
from fmtt.quiet import quiet

Part = TypeVar("Part")

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CONVERT = (
    'convert it once on a machine you trust: python -c "import torch, safetensors.torch as s; '
    "t = torch.load('IN', weights_only=True); "
    "s.save_file({k: v.contiguous() for k, v in t.items()}, 'OUT.safetensors')\""
)
"""What to do about a pickled file of tensors."""


def transformers() -> ModuleType:
    """The transformers package.

    Raises:
        UserError: when it, or Pillow, which its image processors need, is missing.
    """
    try:
        import PIL  # noqa: F401
        import transformers
    except ImportError as error:
        missing = {"PIL": "pillow"}.get(error.name or "", error.name or "transformers")
        raise UserError(f"learned rewards need {missing}: pip install 'fmtt[rewards]'") from error
    return transformers


def parse_dtype(name: str) -> torch.dtype:
    """The dtype of a name.

    Raises:
        UserError: when it is none of ``DTYPES``.
    """
    if name not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


@contextmanager
def one_line(where: str) -> Iterator[None]:
    """Turn what loading raises into one line with the remedy."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{where} needs a package that is not installed: {hub.first_line(error)}") from error
    except SafetensorError as error:
        raise UserError(f"{where}: the weights are damaged ({error}); download them again") from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(_explanation(where, error)) from error


def _explanation(where: str, error: Exception) -> str:
    folder = Path(where).expanduser()
    if folder.is_dir():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles and not list(folder.glob("*.safetensors")):
            return f"{where} has pickled weights only ({pickles[0]}), which are not loaded: {CONVERT}"
        return f"{where} cannot be loaded: {hub.first_line(error)}"
    if folder.exists() or where.startswith((".", "/", "~")):
        return f"model {where} is not a folder; give a folder written by save_pretrained, or a hub id"
    plain = f"{where} cannot be loaded (weights must be safetensors): {hub.first_line(error)}"
    return hub.refusal(where, error) or plain


def load(where: str, make: Callable[[ModuleType], Part]) -> Part:
    """``make(transformers)``, quietly, with errors about ``where`` in one line.

    Raises:
        UserError: when the package, the files or the right to read them is missing.
    """
    package = transformers()
    with one_line(where), quiet(package.__name__), hub.cache_if_unreachable(where):
        return make(package)


def model(name: str, where: str, revision: str, dtype: torch.dtype, device: str) -> Any:
    """The transformers class ``name`` with the weights at ``where``, frozen, in evaluation mode.

    Raises:
        UserError: when weights are pickled, missing or of the wrong shape.
    """

    def make(package: ModuleType) -> Any:
        return getattr(package, name).from_pretrained(
            where,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,  # they are refused below, by name
        )

    network, info = load(where, make)
    lacking = sorted(info["missing_keys"]) or sorted(str(key[0]) for key in info["mismatched_keys"])
    if lacking:
        raise UserError(
            f"{where} does not hold a {name}: {len(lacking)} weights are missing or of another shape, "
            f"first {lacking[0]}"
        )
    return to_device(network.eval().requires_grad_(False), device)


def image_processor(where: str, revision: str) -> Any:
    """The model's own image processor, in its Pillow variant."""
    return load(
        where, lambda t: t.AutoImageProcessor.from_pretrained(where, revision=revision, backend="pil")
    )


def tokenizer(where: str, revision: str) -> Any:
    """The model's own tokenizer."""
    return load(where, lambda t: t.AutoTokenizer.from_pretrained(where, revision=revision))


def to_device(network: Any, device: str) -> Any:
    """``network`` on ``device``.

    Raises:
        UserError: when there is no such device.
    """
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {hub.first_line(error)}") from error


def tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: when it is a pickle, is missing, or is damaged.
    """
    path = Path(path).expanduser()
    if path.suffix in PICKLES:
        raise UserError(f"{path} is a pickle, which is not loaded: {CONVERT}")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file ({error}); {CONVERT}") from error
