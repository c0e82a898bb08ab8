"""NeuralFlowMap: what holds by construction, for both meanings of the network's output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fmtt.flow.flow_map import MIN_TIME_LEFT, PREDICTIONS, NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.types import Cond, FlowMap

pytestmark = pytest.mark.parametrize("prediction", PREDICTIONS)


class Waves(nn.Module):
    """A smooth network with both times in it."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        s, t = s[:, None], t[:, None]
        out = torch.sin(1.3 * x + 2 * t) + s * x
        return out if cond is None else out + cond["shift"]


def build(prediction: str, **kwargs: bool) -> NeuralFlowMap:
    return NeuralFlowMap(Waves(), Linear(), (2,), prediction=prediction, **kwargs)


def draw(n: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    x, s = torch.randn(n, 2, dtype=torch.float64), 0.9 * torch.rand(n, dtype=torch.float64)
    return x, s, s + (1 - s) * torch.rand(n, dtype=torch.float64)


def test_is_the_identity_on_the_diagonal(prediction: str):
    x, s, _ = draw()
    assert torch.equal(build(prediction)(x, s, s), x)


def test_velocity_is_the_derivative_on_the_diagonal(prediction: str):
    flow_map, h = build(prediction, bidirectional=True), 1e-5
    x, s, _ = draw()
    difference = (flow_map(x, s, s + h) - flow_map(x, s, s - h)) / (2 * h)
    torch.testing.assert_close(flow_map.velocity(x, s), difference, rtol=0, atol=1e-8)


def test_step_is_the_average_velocity_times_the_interval(prediction: str):
    flow_map = build(prediction)
    x, s, t = draw()
    expected = x + (t - s)[:, None] * flow_map.average_velocity(x, s, t)
    torch.testing.assert_close(flow_map(x, s, t), expected, rtol=0, atol=0)


def test_endpoint_prediction_is_where_the_map_lands(prediction: str):
    flow_map = build(prediction)
    x, s, _ = draw()
    one = torch.ones_like(s)
    landed, output = flow_map(x, s, one), Waves()(x, s, one)
    expected = output if prediction == "endpoint" else x + (1 - s)[:, None] * output
    torch.testing.assert_close(landed, expected, rtol=0, atol=1e-12)
    denoiser = flow_map.interpolant.denoiser(flow_map.velocity(x, s), x, s)
    diagonal = Waves()(x, s, s)
    expected = diagonal if prediction == "endpoint" else x + (1 - s)[:, None] * diagonal
    torch.testing.assert_close(denoiser, expected, rtol=0, atol=1e-12)


def test_is_finite_and_continuous_near_time_one(prediction: str):
    flow_map = build(prediction)
    x, _, _ = draw()
    edge = 1 - MIN_TIME_LEFT
    assert flow_map.velocity(x, 1.0).isfinite().all()
    torch.testing.assert_close(
        flow_map(x, edge - 1e-9, 1.0), flow_map(x, edge + 1e-9, 1.0), rtol=0, atol=1e-6
    )


def test_goes_backward_only_when_told_so(prediction: str):
    x, s, t = draw()
    with pytest.raises(ValueError, match="bidirectional"):
        build(prediction)(x, t, s)
    assert build(prediction, bidirectional=True)(x, t, s).isfinite().all()


def test_times_may_be_floats_scalars_or_per_sample(prediction: str):
    flow_map = build(prediction)
    x, s, t = draw()
    full = flow_map(x, torch.full_like(s, 0.2), torch.full_like(s, 0.7))
    assert torch.equal(flow_map(x, 0.2, 0.7), full)
    assert torch.equal(flow_map(x, torch.tensor(0.2, dtype=torch.float64), 0.7), full)
    alone = torch.cat([flow_map(x[i : i + 1], float(s[i]), float(t[i])) for i in range(len(x))])
    torch.testing.assert_close(flow_map(x, s, t), alone, rtol=0, atol=1e-14)


def test_conditions_reach_the_network(prediction: str):
    flow_map = build(prediction)
    x, s, t = draw()
    moved = flow_map(x, s, t, {"shift": torch.ones_like(x)})
    assert not torch.equal(moved, flow_map(x, s, t))


def test_satisfies_the_protocol(prediction: str):
    flow_map = build(prediction)
    assert isinstance(flow_map, FlowMap) and flow_map.config == {}


def test_output_keeps_the_dtype_of_x(prediction: str):
    flow_map = build(prediction)
    x, s, t = draw()
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert flow_map(x.to(dtype), s, t).dtype == flow_map.velocity(x.to(dtype), s).dtype == dtype


def test_unknown_prediction_is_refused(prediction: str):
    with pytest.raises(ValueError, match="prediction must be one of"):
        build(prediction + "s")
