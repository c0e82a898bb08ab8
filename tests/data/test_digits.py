"""scikit-learn's digits as a computed set, and the two classifiers of them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from data import digits, digits_classifier
from data.procedural import procedural
from fmtt.errors import UserError
from fmtt.rewards.classifier import Classifier

pytest.importorskip("sklearn")


def test_a_sample_is_an_image_of_its_label_within_its_grey_levels():
    x, found = digits.digits_batch(torch.arange(500), 3)
    levels, labels = digits.images()
    assert levels.shape == (1797, 1, 8, 8) and levels.min() == 0 and levels.max() == digits.LEVELS - 1
    assert x.shape == (500, *digits.DATA_SHAPE) and x.dtype == torch.float32
    assert torch.equal(found.label, labels[found.image])
    low = digits.values(levels[found.image], 0.0)
    width = 2 / digits.LEVELS
    within = (x - low) / width
    assert within.min() > -1e-5 and within.max() < 1 + 1e-5
    # Uniform within the level: mean 1/2, variance 1/12 (of which the standard error is below 0.075 / sqrt n).
    n = within.numel()
    assert abs(within.mean().item() - 0.5) < 4 / math.sqrt(12 * n)
    assert abs(within.var().item() - 1 / 12) < 4 * 0.075 / math.sqrt(n)
    assert x.min() >= digits.VALUE_RANGE[0] and x.max() <= digits.VALUE_RANGE[1]


def test_every_image_is_as_likely():
    n, count = 40_000, 1797
    drawn = digits.digits_batch(torch.arange(n), 0)[1].image
    share = torch.bincount(drawn, minlength=count).double() / n
    assert ((share - 1 / count).abs() < 5 * math.sqrt(1 / count / n)).all()
    assert procedural("digits").cond == ()


def test_without_scikit_learn_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits.images.cache_clear()
    with pytest.raises(UserError, match="the digits need scikit-learn: pip install"):
        digits.images()


def test_reward_and_judge_read_images_they_were_not_fitted_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(digits_classifier, "STEPS", 300)
    even, odd = digits_classifier.halves()
    digits_classifier.write(tmp_path / "a.safetensors", even)
    digits_classifier.write(tmp_path / "b.safetensors", even)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    reward = Classifier(str(tmp_path / "a.safetensors"), 0)
    guessed = reward.log_probabilities(odd.x).argmax(1)
    assert (guessed == odd.label).double().mean() > 0.95
    judge = digits_classifier.judge(odd)
    assert (judge(even.x) == even.label).double().mean() > 0.97
    zeros, others = odd.x[odd.label == 0], odd.x[odd.label != 0]
    assert reward(zeros).mean() > -0.5 and reward(others).mean() < -4
