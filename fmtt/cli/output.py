"""The folder a command writes: pictures, tensors and summary.json, each atomically."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

import fmtt
from fmtt import png
from fmtt.files import atomic_write, check_writable, write_json

if TYPE_CHECKING:
    from argparse import Namespace

    from matplotlib.figure import Figure


def plain(value: Any) -> Any:
    """``value`` as JSON holds it: tensors as lists, numbers that are not finite as null, the rest as text."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | type(None)) else str(value)


class Output:
    """An output folder, checked to be writable before any work is done; the first file written makes it.

    Raises:
        UserError: when the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[str] = []
        self.start = time.perf_counter()
        check_writable(folder, "--out")

    def bytes(self, name: str, content: bytes) -> None:
        """Write a file."""
        with atomic_write(self.folder / name) as temporary:
            temporary.write_bytes(content)
        self.written.append(name)

    def tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a safetensors file."""
        ready = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        with atomic_write(self.folder / name) as temporary:
            save_file(ready, temporary)
        self.written.append(name)

    def picture(self, name: str, samples: Tensor, values: tuple[float, float]) -> None:
        """Write a grid of images (n, 1 or 3, H, W); samples that are no images are left to the tensors."""
        if png.is_image(samples.shape[1:]):
            self.bytes(name, png.encode(png.grid(png.to_rgb(samples, values))))

    def figure(self, name: str, figure: Figure) -> bytes:
        """Write a matplotlib figure and return it as PNG."""
        from fmtt.evaluation.style import png as render

        content = render(figure)
        self.bytes(name, content)
        return content

    def finish(self, args: Namespace, results: Mapping[str, Any]) -> None:
        """Write summary.json: the command, its arguments, what came out; and print what was written."""
        arguments = {key: value for key, value in vars(args).items() if key not in ("run", "command")}
        seconds = round(time.perf_counter() - self.start, 3)
        head = {"command": args.command, "arguments": arguments, "version": fmtt.__version__}
        write_json(self.folder / "summary.json", plain({**head, **results, "seconds": seconds}))
        self.written.append("summary.json")
        print(f"wrote {', '.join(self.written)} to {self.folder} in {seconds:.1f} s")
