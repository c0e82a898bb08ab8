"""Closed-form flows that everything else is tested against: a Gaussian and a Gaussian mixture."""

from __future__ import annotations

from fmtt.flow.oracle_gaussian import Gaussian
from fmtt.flow.oracle_mixture import GaussianMixture

__all__ = ["Gaussian", "GaussianMixture"]
