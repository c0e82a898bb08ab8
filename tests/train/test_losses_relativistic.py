"""The relativistic loss by hand and at its minimum; the penalties against derivatives in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from train.discriminator import Discriminator
from train.losses.relativistic import judged, of_discriminator, of_student

KINDS = {
    "mlp": ((2,), {"width": 8, "depth": 1}),
    "dit": ((1, 4, 4), {"patch": 2, "dim": 8, "depth": 1, "heads": 2}),
}


def test_values_by_hand():
    real, fake = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    # log(1 + e), log(1 + e^-2); log(1 + 1/e), log(1 + e^2)
    torch.testing.assert_close(of_student(real, fake), torch.tensor([1.3132617, 0.1269280]))
    torch.testing.assert_close(of_discriminator(real, fake), torch.tensor([0.3132617, 2.1269280]))
    equal = torch.tensor([3.0])
    torch.testing.assert_close(of_student(equal, equal), torch.tensor([math.log(2)]))


@pytest.mark.parametrize("samples", [[0.7, 0.3], [0.2, 0.8]], ids=["the data's law", "another law"])
def test_the_discriminator_of_a_law_on_two_points_at_its_minimum(samples):
    """Data at a with probability 0.7, else at b: with d = D(a) - D(b) the mean is a function of d alone."""
    data, samples = torch.tensor([0.7, 0.3]).double(), torch.tensor(samples).double()
    pairs = data[:, None] * samples  # (datum, sample)
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=50, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def mean() -> Tensor:
        optimizer.zero_grad()
        loss = (pairs * of_discriminator(logits[:, None], logits[None])).sum()
        loss.backward()
        return loss

    optimizer.step(mean)
    best, d = float(mean().detach()), float((logits[0] - logits[1]).detach())
    odds = float(pairs[0, 1] / pairs[1, 0])  # a pair (a, b) is this much likelier than (b, a)
    assert d == pytest.approx(math.log(odds), abs=1e-3)
    same = float(pairs[0, 0] + pairs[1, 1]) * math.log(2)
    differ = float(pairs[0, 1]) * math.log(1 + 1 / odds) + float(pairs[1, 0]) * math.log(1 + odds)
    assert best == pytest.approx(same + differ, abs=1e-9)
    assert best == pytest.approx(math.log(2), abs=1e-9) if odds == 1 else best < math.log(2) - 0.01


def test_the_penalty_is_the_squared_gradient(generator):
    matrix = torch.randn(3, 3, generator=generator, dtype=torch.float64)

    def bowl(x: Tensor, cond: object) -> Tensor:
        return (x @ matrix).square().sum(1) / 2 + x.sum(1)

    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    truth = (x @ matrix @ matrix.T + 1).square().sum(1)
    logits, exact = judged(bowl, x, None, step=0.0, generator=generator)
    torch.testing.assert_close(logits, bowl(x, None))
    torch.testing.assert_close(exact, truth)

    n, step = 20_000, 1e-3
    many = x.repeat_interleave(n, 0)
    values = judged(bowl, many, None, step=step, generator=generator)[1].reshape(4, n)
    assert ((values.mean(1) - truth).abs() < 4 * values.std(1) / n**0.5).all()
    # Without the division the estimate would be step^2 of it; with steps of another length, their square.
    longer = judged(bowl, many, None, step=step, generator=generator)[1].reshape(4, n) * 1.1**2
    assert ((longer.mean(1) - truth).abs() > 4 * longer.std(1) / n**0.5).all()


@pytest.mark.parametrize("step", [0.0, 0.01], ids=["differentiated again", "differences"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_discriminator_equal_float64_differences(kind, step, generator):
    """Of its whole loss, penalties included, in its weights."""
    shape, args = KINDS[kind]
    judge = Discriminator(shape, kind, args).double()
    real, fake = (torch.randn(5, *shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def loss() -> Tensor:
        noise = torch.Generator().manual_seed(1)
        on_data, r1 = judged(judge, real, None, step=step, generator=noise)
        on_samples, r2 = judged(judge, fake, None, step=step, generator=noise)
        return of_discriminator(on_data, on_samples).mean() + 0.8 * r1.mean() + 0.3 * r2.mean()

    weights = list(judge.parameters())
    gradients = torch.autograd.grad(loss(), weights)
    for _ in range(3):
        directions = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
        along = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        ends = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                for w, d in zip(weights, directions, strict=True):
                    w.add_(h * d)
            ends.append(float(loss().detach()))
            with torch.no_grad():
                for w, d in zip(weights, directions, strict=True):
                    w.sub_(h * d)
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(along, rel=1e-6, abs=1e-8)


def test_a_new_discriminator_sees_its_input(generator):
    for kind, (shape, args) in KINDS.items():
        x = torch.randn(6, *shape, generator=generator)
        logits = Discriminator(shape, kind, args)(x, None)
        assert logits.shape == (6,) and float(logits.detach().std()) > 1e-3


def test_a_discriminator_takes_its_input_for_clean(generator):
    judge, ones = Discriminator((2,), "mlp", {"width": 8, "depth": 1}), torch.ones(6)
    x = torch.randn(6, 2, generator=generator)
    assert torch.equal(judge(x), judge.head(judge.network(x, ones, ones, None)).squeeze(1))
    for s, t in ((0 * ones, ones), (ones, 0 * ones)):
        assert not torch.allclose(judge(x), judge.head(judge.network(x, s, t, None)).squeeze(1))
