"""A bimodal product mixture with a cheap exact flow map, and a deliberately wrong one."""

from __future__ import annotations

import pytest

from fmtt.evaluation.certify_problems import ProductMixture, WrongMap


@pytest.fixture(scope="session")
def product_mixture() -> type[ProductMixture]:
    return ProductMixture


@pytest.fixture(scope="session")
def wrong_map() -> type[WrongMap]:
    return WrongMap
