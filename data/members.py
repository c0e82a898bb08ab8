"""The members of a sample: how arrays are named and stored in a shard, and read back.

Sample KEY is ``KEY.x.npy`` (the data), one ``KEY.cond.NAME.npy`` for each conditioning array, and
``KEY.json`` (whatever else is known of it; not read in training). An array in bfloat16, which .npy does not
have, is ``.safetensors`` with one tensor called ``value`` instead. Every sample has the same arrays, each of
one shape and dtype, which index.json states; nothing is ever pickled.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from data.index import Array, Header
from fmtt.errors import UserError

_TENSOR = "value"
_EXPONENT = {"bfloat16": np.uint16(0x7F80), "float16": np.uint16(0x7C00)}
_NAME = re.compile(r"[a-z0-9_]+")


class Member:
    """One array of every sample: to bytes and back, without parsing a header that is as expected.

    Args:
        field: ``x`` or ``cond.NAME``.
        array: its shape and dtype.
    """

    def __init__(self, field: str, array: Array) -> None:
        self.field, self.shape, self.dtype = field, array.shape, array.dtype
        self.packed = array.dtype == "bfloat16"
        self.name = f"{field}.safetensors" if self.packed else f"{field}.npy"
        self.storage = np.dtype("uint16" if self.packed else array.dtype)
        """How numpy holds it: the bits, where it has no such numbers."""
        self._size = self.storage.itemsize * int(np.prod(self.shape))
        whole = self._serialise()
        self._prefix = whole[: len(whole) - self._size]

    def _serialise(self) -> bytes:
        if self.packed:
            return safetensors.torch.save({_TENSOR: torch.zeros(self.shape, dtype=torch.bfloat16)})
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.zeros(self.shape, self.storage), allow_pickle=False)
        return stream.getvalue()

    def encode(self, value: Tensor | np.ndarray) -> bytes:
        """The member's bytes.

        Raises:
            ValueError: when the array is not as stated, or holds numbers that are not finite.
        """
        tensor = torch.as_tensor(value).detach().cpu()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tuple(tensor.shape) != self.shape or dtype != self.dtype:
            raise ValueError(f"{self.field} is {dtype} {tuple(tensor.shape)}, not {self.dtype} {self.shape}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{self.field} holds numbers that are not finite")
        return self._prefix + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    def decode(self, sample: Mapping[str, bytes]) -> np.ndarray:
        """The array of a sample whose members are given by name, in ``storage``.

        Raises:
            ValueError: when it is missing, unreadable or not as stated.
        """
        data = sample.get(self.name)
        if data is None:
            raise ValueError(f"{self.name} is missing")
        prefix = self._prefix
        if len(data) == len(prefix) + self._size and data.startswith(prefix):
            return np.frombuffer(data, self.storage, offset=len(prefix)).reshape(self.shape)
        try:
            value: Any = self._parse(data)
        except (ValueError, EOFError, OSError, KeyError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{self.name} is not a readable array ({reason})") from None
        if not isinstance(value, (np.ndarray, Tensor)):
            raise ValueError(f"{self.name} is {type(value).__name__}, not an array")
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        if (dtype, shape) != (self.dtype, self.shape):
            raise ValueError(f"{self.name} is {dtype} {shape} where the index says {self.dtype} {self.shape}")
        return value.view(torch.uint16).numpy() if isinstance(value, Tensor) else value

    def _parse(self, data: bytes) -> Any:
        if self.packed:
            return safetensors.torch.load(data)[_TENSOR]
        return np.load(io.BytesIO(data), allow_pickle=False)

    def finite(self, rows: np.ndarray) -> np.ndarray:
        """Which of the stacked ``rows`` (n, ...) hold finite numbers alone, (n,) bool."""
        if exponent := _EXPONENT.get(self.dtype):  # numpy has no fast test for these
            good = (rows.view(np.uint16) & exponent) != exponent
        else:
            good = np.isfinite(rows)
        return np.asarray(good.all(axis=tuple(range(1, rows.ndim))))

    def tensor(self, rows: np.ndarray) -> Tensor:
        """Stacked ``rows`` as training takes them: numbers with a fraction in float32, others as stored."""
        tensor = torch.from_numpy(rows)
        tensor = tensor.view(torch.bfloat16) if self.packed else tensor
        return tensor.float() if tensor.is_floating_point() else tensor


def members(header: Header) -> tuple[Member, ...]:
    """The arrays of a set's samples; the first is x.

    Raises:
        UserError: when a name cannot be a member's.
    """
    for name in header.cond:
        if not _NAME.fullmatch(name):
            raise UserError(f"conditioning {name!r}: a name takes small letters, digits and _ alone")
    conds = (Member(f"cond.{name}", array) for name, array in header.cond.items())
    return Member("x", header.x), *conds
