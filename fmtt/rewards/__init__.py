"""Rewards, one file per family, and what is common to them: descriptions, sums, and names in text."""

from __future__ import annotations

from fmtt.rewards.composite import Composite
from fmtt.rewards.description import Described, Description, describe
from fmtt.rewards.specification import build, parse
from fmtt.rewards.table import REWARDS

__all__ = ["REWARDS", "Composite", "Described", "Description", "build", "describe", "parse"]
