"""Combinations without right weights are refused, and the message names the remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fmtt
from fmtt.errors import UserError


def reward(x: Tensor, cond: Any = None) -> Tensor:
    return 1.5 * x[:, 0] - x[:, 0].square() / 2


def tilt(flow: Any, **options: Any) -> fmtt.TiltResult:
    settings = {"num_particles": 64, "num_steps": 12, "dtype": torch.float64, **options}
    return fmtt.tilt(flow, reward, generator=torch.Generator().manual_seed(0), **settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chi": 0.5, "weights": "paper"}, "Laplacian.*path"),
        ({"chi": -0.5}, "chi"),
        ({"chi": 0.5, "gradient": "none", "weights": "path"}, "chi.*gradient"),
        ({"gradient": "zeroth"}, "zeroth.*path"),
        ({"guidance": 2.0}, "guidance=2.*path"),
        ({"gradient": "none"}, "path"),
        ({"gradient_every": 2}, "gradient_every=2.*path"),
        ({"kernel": "renoise"}, "renoise.*path"),
        ({"kernel": "ddim"}, "kernel"),
        ({"chi": 0.5, "noise": 0.0, "weights": "path"}, "noise"),
        ({"weights": "right"}, "exact, paper, path, none"),
        ({"gradient": "maybe"}, "gradient"),
        ({"gradient_every": 0, "weights": "path"}, "gradient_every"),
        ({"resample": "sometimes"}, "systematic, stratified, residual, multinomial, ssp, none"),
        ({"resample_at": [0.5, 1.0]}, "resample_at"),
        ({"resample_at": [0.5], "resample": "none"}, "resample_at contradicts"),
        ({"final_resample": True, "resample": "none"}, "final_resample contradicts"),
        ({"final_resample": True, "weights": "none"}, "weights='none'"),
        ({"resample_share": 0.0}, "resample_share"),
        ({"num_probes": 0}, "num_probes"),
        ({"probe_scale": 0.0}, "probe_scale"),
        ({"lookahead": "denoiser", "lookahead_map": 1}, "lookahead_map"),
        ({"lookahead": "ode", "lookahead_tol": 0.0}, "lookahead_tol"),
        ({"x_init": torch.zeros(1, 1), "x_init_is": "photo"}, "x_init_is"),
        ({"ess_threshold": 1.5}, "ess_threshold"),
        ({"num_particles": 0}, "num_particles"),
        ({"num_populations": 0}, "num_populations"),
        ({"max_reward_calls": 100}, "max_reward_calls"),
        ({"max_reward_calls": 2000, "gradient": "zeroth", "weights": "path"}, "2048 reward calls"),
        ({"t_start": 0.5}, "x_init"),
        ({"x_init": torch.zeros(3, 1)}, "x_init"),
        ({"cond": {"a": torch.zeros(3), "b": torch.zeros(2)}}, "rows"),
        ({"cond": {"a": torch.zeros(3)}, "num_populations": 2}, "num_populations"),
        ({"lookahead": "map"}, "lookahead"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
    ids=str,
)
def test_wrong_input_is_named(product_mixture: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tilt(product_mixture(1), **options)
