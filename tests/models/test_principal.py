"""The input layer that sees the data's principal components."""

import pytest
import torch

from fmtt.models.dit import DiT
from fmtt.models.principal import PrincipalEmbedding

WIDTH, RANK = 12, 3


def samples(n: int = 400) -> torch.Tensor:
    """Data (n, 3, 2, 2) near an affine subspace of dimension RANK."""
    g = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(WIDTH, RANK, generator=g))[0]
    scales = torch.tensor([3.0, 2.0, 1.0])
    flat = torch.randn(n, RANK, generator=g) * scales @ directions.T + 5
    return (flat + 1e-3 * torch.randn(n, WIDTH, generator=g)).reshape(n, 3, 2, 2)


def test_it_sees_the_data_and_nothing_else() -> None:
    layer = PrincipalEmbedding(WIDTH, RANK, 4, 8)
    assert not layer.fitted
    x = samples()
    layer.fit(x)
    assert layer.fitted
    basis = layer.basis.float()
    torch.testing.assert_close(basis @ basis.T, torch.eye(RANK), atol=1e-3, rtol=0)
    centred = (x - x.mean(0)).flatten(1)
    torch.testing.assert_close(centred @ basis.T @ basis, centred, atol=2e-2, rtol=0)
    variance = (centred @ basis.T).var(0)
    assert variance.tolist() == sorted(variance.tolist(), reverse=True)
    noise = torch.randn(WIDTH, 1)
    inside = torch.linalg.lstsq(basis.T.double(), noise.double()).solution.float()  # of the stored rows
    outside = (noise - basis.T @ inside).reshape(1, 3, 2, 2)
    assert outside.norm() > 1
    seen = layer.coefficients
    assert seen(x[:5]).shape == (5, RANK) and layer.linear(seen(x[:5])).shape == (5, 4 * 8)
    torch.testing.assert_close(seen(x[:5] + 10 * outside), seen(x[:5]), atol=1e-3, rtol=1e-3)


def test_few_samples_give_the_components_that_they_span() -> None:
    layer, x = PrincipalEmbedding(WIDTH, RANK, 4, 8), samples(WIDTH - 2)
    layer.fit(x)
    _, _, right = torch.linalg.svd((x - x.mean(0)).flatten(1).double(), full_matrices=False)
    expected = right[:RANK].float()
    assert torch.allclose((layer.basis.float() @ expected.T).abs(), torch.eye(RANK), atol=2e-3)


@pytest.mark.parametrize("rank", [0, WIDTH + 1])
def test_an_impossible_rank_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="principal must lie between 1 and the 12 entries"):
        PrincipalEmbedding(WIDTH, rank, 4, 8)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="2 samples do not have 3 principal components"):
        PrincipalEmbedding(WIDTH, RANK, 4, 8).fit(samples(2))


def test_a_dit_takes_it_in_place_of_patches() -> None:
    network = DiT((3, 4, 4), patch=2, dim=16, depth=1, heads=2, principal=5)
    assert isinstance(network.embed, PrincipalEmbedding)
    network.embed.fit(torch.randn(64, 3, 4, 4))
    x, time = torch.randn(2, 3, 4, 4), torch.zeros(2)
    assert network(x, time, time).shape == x.shape
    assert "embed.basis" in network.state_dict()
