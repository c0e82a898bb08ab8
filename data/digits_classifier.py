"""Two classifiers of the digits, fitted to different images: one to be optimised, one to judge.

The first is a multilayer perceptron that :class:`fmtt.rewards.classifier.Classifier` reads; the second a
support vector machine, which shares neither images nor form with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from data.digits import CLASSES, DATA_SHAPE, images, values
from fmtt.files import atomic_write

WIDTH, STEPS, BATCH = 64, 1500, 128
NOISE = 0.3
"""Standard deviation of what is added to an image in fitting, so that the classifier is smooth around it."""


class Half(NamedTuple):
    """Images (B, 1, 8, 8) in model values and labels (B,)."""

    x: Tensor
    label: Tensor


def halves() -> tuple[Half, Half]:
    """The images of even and of odd number: for the reward, and for the judge."""
    levels, labels = images()
    x = values(levels)
    return Half(x[0::2], labels[0::2]), Half(x[1::2], labels[1::2])


def fit(half: Half, seed: int = 0) -> dict[str, Tensor]:
    """Tensors of a multilayer perceptron, as the reward reads them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [torch.Size(DATA_SHAPE).numel(), WIDTH, WIDTH, CLASSES]
    layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    for layer in layers:
        with torch.no_grad():
            layer.weight.normal_(0, (2 / layer.in_features) ** 0.5, generator=generator)
            layer.bias.zero_()
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(half.x), (BATCH,), generator=generator)
        h = half.x[rows].flatten(1)
        h = h + NOISE * torch.randn(h.shape, generator=generator)
        for k, layer in enumerate(layers):
            h = layer(F.silu(h) if k else h)
        loss = F.cross_entropy(h, half.label[rows], label_smoothing=0.01)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    named = {
        f"layers.{k}.{name}": p for k, layer in enumerate(layers) for name, p in layer.named_parameters()
    }
    return {name: p.detach().contiguous() for name, p in named.items()}


def write(path: Path, half: Half, seed: int = 0) -> None:
    """Fit a classifier and write it to ``path`` (safetensors)."""
    with atomic_write(path) as temporary:
        save_file(fit(half, seed), temporary)


def judge(half: Half) -> Callable[[Tensor], Tensor]:
    """A support vector machine: samples (B, 1, 8, 8) to labels (B,) int64."""
    from sklearn.svm import SVC

    machine = SVC(C=10.0, gamma="scale").fit(half.x.flatten(1).numpy(), half.label.numpy())

    def read(x: Tensor) -> Tensor:
        return torch.from_numpy(machine.predict(x.detach().float().cpu().flatten(1).numpy()))

    return read
