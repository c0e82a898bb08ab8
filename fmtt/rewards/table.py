"""The only table from names to rewards."""

from __future__ import annotations

from collections.abc import Callable

from fmtt.rewards.classifier import Classifier
from fmtt.rewards.clock_reward import ClockReward
from fmtt.rewards.inverse import Blur, Inpainting, SuperResolution
from fmtt.rewards.learned.aesthetic import Aesthetic
from fmtt.rewards.learned.contrastive import ClipScore, HPSv2, PickScore
from fmtt.rewards.learned.image_reward import ImageReward
from fmtt.rewards.learned.vlm import VisionLanguage
from fmtt.rewards.region import Brightness, Colour
from fmtt.rewards.remote import RemoteJudge
from fmtt.rewards.symmetry import Antisymmetry, Rotation, Symmetry
from fmtt.types import Reward

REWARDS: dict[str, Callable[..., Reward]] = {
    "clock": ClockReward,
    "classifier": Classifier,
    "symmetry": Symmetry,
    "antisymmetry": Antisymmetry,
    "rotation": Rotation,
    "brightness": Brightness,
    "colour": Colour,
    "super_resolution": SuperResolution,
    "inpainting": Inpainting,
    "blur": Blur,
    "clip": ClipScore,
    "pickscore": PickScore,
    "hpsv2": HPSv2,
    "image_reward": ImageReward,
    "aesthetic": Aesthetic,
    "vlm": VisionLanguage,
    "remote": RemoteJudge,
}
"""Every reward a specification can name; its keys are the constructor's arguments."""
