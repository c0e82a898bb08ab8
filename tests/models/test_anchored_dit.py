"""The anchored transformer's own law: whose weights serve which jump; the rest is in test_networks.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import fmtt
from fmtt.flow.flow_map import NeuralFlowMap
from fmtt.flow.interpolant import Linear
from fmtt.models.anchored_dit import AnchoredDiT
from fmtt.models.dit import DiT
from fmtt.models.slide import Slide, in_common, share_of_time_left
from fmtt.steering.lookahead import EulerLookahead, FlowMapLookahead
from fmtt.tensor import expanded_time

SHAPE = (2, 4, 4)
ARGS: dict[str, Any] = {"patch": 2, "dim": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0}


def spread(network: torch.nn.Module, std: float = 0.3) -> None:
    with torch.no_grad():
        for value in [*network.parameters(), *network.buffers()]:
            value.add_(std * torch.randn(value.shape, dtype=value.dtype))


def build(**extra: Any) -> tuple[NeuralFlowMap, NeuralFlowMap, NeuralFlowMap]:
    """(an anchored map, a velocity model with its anchor's weights, a map with its own), in float64."""
    torch.manual_seed(0)
    anchored = AnchoredDiT(SHAPE, **ARGS, **extra).double()
    spread(anchored)
    anchor, own = (DiT(SHAPE, **ARGS, **extra).double() for _ in range(2))
    anchor.load_state_dict(anchored.anchor.state_dict())
    own.load_state_dict(anchored.anchor.state_dict() | anchored.own.state_dict())

    def wrap(network: torch.nn.Module) -> NeuralFlowMap:
        return NeuralFlowMap(network, Linear(), SHAPE, bidirectional=True).requires_grad_(False)

    return wrap(anchored), wrap(anchor), wrap(own)


def reward(x: Tensor, cond: object = None) -> Tensor:
    return -x.square().flatten(1).mean(1)


def draw(n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    s = 0.1 + 0.8 * torch.rand(n, dtype=torch.float64)
    return torch.randn(n, *SHAPE, dtype=torch.float64), s, s + (0.95 - s) * torch.rand(n, dtype=torch.float64)


@pytest.mark.parametrize("extra", [{}, {"principal": 6}, {"num_classes": 3}], ids=str)
def test_the_velocity_is_the_anchors_and_the_look_ahead_its_own(extra: dict[str, Any]):
    flow_map, anchor, own = build(**extra)
    x, s, t = draw()
    cond = {"label": torch.tensor([0, 1, 2, 3, 0])} if "num_classes" in extra else None
    assert torch.equal(flow_map.velocity(x, s, cond), anchor.velocity(x, s, cond))
    end = torch.ones_like(s)
    assert torch.equal(flow_map(x, s, end, cond), own(x, s, end, cond))
    between = flow_map(x, s, t, cond)
    assert not torch.allclose(between, own(x, s, t, cond))
    # and where the times are everyone's, so that the weights are merged
    for mine, theirs in (
        (flow_map.velocity(x, 0.3, cond), anchor.velocity(x, 0.3, cond)),
        (flow_map(x, 0.3, 1.0, cond), own(x, 0.3, 1.0, cond)),
        (flow_map(x, 0.3, 0.7, cond), flow_map(x, torch.full_like(s, 0.3), torch.full_like(s, 0.7), cond)),
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_the_share_is_of_the_time_that_is_left():
    s, t = torch.tensor([[0.2, 0.5, 0.3, 1.0, 0.0], [0.6, 0.5, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(share_of_time_left(s, t), torch.tensor([0.5, 0.0, 1.0, 0.0, 0.0]))


def test_the_error_of_a_short_jump_shrinks_with_its_length():
    """Towards the anchor's velocity, by half with half the length; a map of its own weights keeps its."""
    flow_map, anchor, own = build()
    x, s, _ = draw(64)

    def errors(of: NeuralFlowMap) -> list[float]:
        exact = anchor.velocity(x, s)
        return [float((of.average_velocity(x, s, s + h) - exact).norm()) for h in (0.01, 0.005)]

    longer, shorter = errors(flow_map)
    assert shorter == pytest.approx(longer / 2, rel=0.1)
    longer, shorter = errors(own)
    assert shorter == pytest.approx(longer, rel=0.1) and shorter > 0.1


def test_weights_are_merged_where_all_samples_share_the_times(monkeypatch: pytest.MonkeyPatch):
    """One product per layer instead of two."""
    flow_map, *_ = build()
    x, s, t = draw()
    merged: list[bool] = []
    original = Slide.linear

    def linear(self: Slide, *args: Any) -> Tensor:
        merged.append(len(self.share) == 1)
        return original(self, *args)

    monkeypatch.setattr(Slide, "linear", linear)
    flow_map(x, 0.3, 0.6)
    flow_map(x, s[0], t[0])
    assert merged and all(merged)
    for steps in (1, 3):
        FlowMapLookahead(flow_map, steps)(x, expanded_time(0.3, x), None, None)
    EulerLookahead(flow_map.velocity, 3)(x, expanded_time(0.3, x), None, flow_map.velocity(x, 0.3))
    fmtt.tilt(flow_map, reward, num_particles=4, num_steps=2, weights="path", dtype=torch.float64)
    fmtt.sample(flow_map, 4, steps=2, dtype=torch.float64)
    assert merged and all(merged)
    merged.clear()
    flow_map(x, s, t)
    assert merged and not any(merged)


def test_a_time_that_is_differentiated_is_each_samples_own():
    one = torch.tensor(0.3)
    assert in_common(one.expand(4)).shape == (1,)
    assert in_common(torch.full((4,), 0.3)).shape == (4,)
    assert in_common(one.requires_grad_().expand(4)).shape == (4,)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.tensor(0.3), torch.tensor(1.0)).expand(4)
        assert in_common(dual).shape == (4,)


def test_the_anchor_does_not_train():
    network = AnchoredDiT(SHAPE, **ARGS)
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"own"}
