"""The classifier reward: log-probabilities, gradients, and what is no classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fmtt.errors import UserError
from fmtt.rewards import build, describe
from fmtt.rewards.classifier import Classifier


def tensors(sizes: tuple[int, ...] = (4, 6, 3)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pairs = list(zip(sizes, sizes[1:], strict=False))
    weights = {f"layers.{k}.weight": torch.randn(b, a, generator=generator) for k, (a, b) in enumerate(pairs)}
    return weights | {
        f"layers.{k}.bias": torch.randn(b, generator=generator) for k, (_, b) in enumerate(pairs)
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "classifier.safetensors")
    return tmp_path / "classifier.safetensors"


def test_scores_are_log_probabilities_of_the_class(file: Path):
    t, x = tensors(), torch.randn(5, 1, 2, 2)
    hidden = F.silu(x.flatten(1) @ t["layers.0.weight"].T + t["layers.0.bias"])
    logits = hidden @ t["layers.1.weight"].T + t["layers.1.bias"]
    every = torch.stack([build(f"classifier:path={file},label={k}")(x, None) for k in range(3)], 1)
    torch.testing.assert_close(every, torch.log_softmax(logits, 1))
    torch.testing.assert_close(every.exp().sum(1), torch.ones(5))
    torch.testing.assert_close(build(f"classifier:path={file},label=1,strength=3")(x, None), 3 * every[:, 1])


def test_the_gradient_reaches_the_samples(file: Path):
    reward = Classifier(str(file), 2)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reward, (x,))
    assert describe(reward).differentiable and describe(reward).value_range[1] == 0
    assert repr(build(repr(reward))) == repr(reward)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"layers.1.weight": torch.zeros(3, 5)}, "layers.1 has shapes"),
        ({"layers.1.bias": torch.zeros(4)}, "layers.1 has shapes"),
        ({"layers.0.weight": torch.zeros(())}, "layers.0 has shapes"),
        ({"head.weight": torch.zeros(3, 5)}, "'head.weight' is not"),
        ({"layers.2.weight": torch.zeros(3, 5)}, "5 tensors are not pairs"),
        ({"layers.3.weight": torch.zeros(3, 3), "layers.3.bias": torch.zeros(3)}, "lacks layers.2.weight"),
    ],
)
def test_a_file_that_is_no_classifier(tmp_path: Path, change: dict[str, Tensor], says: str):
    save_file(tensors() | change, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=says):
        Classifier(str(tmp_path / "wrong.safetensors"), 0)


def test_mistakes(file: Path, tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        Classifier(str(tmp_path / "absent.safetensors"), 0)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read"):
        Classifier(str(tmp_path / "broken.safetensors"), 0)
    for label in (-1, 3):
        with pytest.raises(UserError, match=r"label must lie in \[0, 2\]"):
            Classifier(str(file), label)
    with pytest.raises(UserError, match="strength must be positive"):
        Classifier(str(file), 0, 0.0)
    with pytest.raises(UserError, match="classifies samples of 4 values, these have 9"):
        Classifier(str(file), 0)(torch.zeros(2, 1, 3, 3))
