"""An input layer that sees only the principal components of the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PrincipalEmbedding(nn.Module):
    """Coefficients of a sample on the data's leading principal components, and ``linear``, the layer that
    makes tokens of them.

    Noise has a component along every direction, data only along few, and the law of the data given a noisy
    sample depends on the sample's part in the data's own subspace alone. A network that sees the rest fits
    its noise: with few thousand trajectories it learns them by heart.

    Args:
        width: number of entries of a sample.
        rank: components kept.
        tokens, dim: shape of the embedding.
    """

    basis: Tensor

    def __init__(self, width: int, rank: int, tokens: int, dim: int) -> None:
        super().__init__()
        if not 1 <= rank <= width:
            raise ValueError(f"principal must lie between 1 and the {width} entries of a sample, got {rank}")
        # Half the digits are enough for a fixed projection, and it is a fifth of a small network's size.
        self.register_buffer("basis", torch.zeros(rank, width, dtype=torch.float16))
        self.linear = nn.Linear(rank, tokens * dim)

    @property
    def fitted(self) -> bool:
        """Whether the components are known, or another layer's serve; until then the layer sees nothing."""
        return self._buffers["basis"] is None or bool(self.basis.any())

    @torch.no_grad()
    def fit(self, samples: Tensor) -> None:
        """Take the components from ``samples`` (N, *D), N at least the rank.

        Raises:
            ValueError: when there are fewer samples than components.
        """
        rank = len(self.basis)
        if len(samples) < rank:
            raise ValueError(f"{len(samples)} samples do not have {rank} principal components")
        rows = samples.flatten(1).double()
        rows = rows - rows.mean(0)
        few = len(rows) < rows.shape[1]
        _, vectors = torch.linalg.eigh(rows @ rows.T if few else rows.T @ rows)  # in ascending order
        leading = vectors[:, -rank:].flip(1).T
        if few:
            leading = F.normalize(leading @ rows, dim=1)
        # The sign of an eigenvector is arbitrary: make its largest entry positive.
        largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
        self.basis.copy_(leading * largest.sign())

    def coefficients(self, x: Tensor) -> Tensor:
        """(B, rank), of samples (B, *D)."""
        return x.flatten(1) @ self.basis.to(x.dtype).T
