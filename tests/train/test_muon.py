"""Our Muon against torch's, and the orthogonalisation against a singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 20), (2, 20, 6)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = orthogonalise(g, torch.float32)
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    projected = u.mT @ out @ vh.mT  # diagonal, if singular vectors are kept
    values = projected.diagonal(dim1=1, dim2=2)
    large = s > 0.05 * s.max()  # five steps do not lift the smallest ones all the way
    assert torch.all((values[large] > 0.5) & (values[large] < 1.3))
    assert torch.allclose(projected, torch.diag_embed(values), atol=1e-4)


def test_it_steps_like_torch_but_for_the_rounding_of_bfloat16():
    def run(make) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        parameters = [nn.Parameter(torch.randn(12, 8, generator=generator)) for _ in range(2)]
        optimizer = make(parameters)
        for _ in range(5):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        return torch.stack([p.detach() for p in parameters])

    ours = run(lambda p: Muon(p, lr=0.02, weight_decay=0.1))
    theirs = run(lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    still = run(lambda p: Muon(p, lr=0.0, weight_decay=0.0))
    assert (ours - theirs).norm() < 0.02 * (theirs - still).norm()
