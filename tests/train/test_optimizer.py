"""Muon and AdamW behind one optimizer: who gets which parameter, saving, the learning rate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from fmtt.errors import UserError
from fmtt.models.dit import DiT
from fmtt.models.mlp import MLP
from train.optimizer import MuonWithAdamW, learning_rate_factor, split_parameters


def network() -> DiT:
    net = DiT((1, 8, 8), patch=4, dim=16, depth=2, heads=2)
    net.second_time.requires_grad_(False)
    return net


@pytest.mark.parametrize("net", [network(), MLP((2,), width=8)], ids=["dit", "mlp"])
def test_every_trainable_parameter_is_in_one_group(net):
    matrices, others = split_parameters(net)
    ids = [id(p) for p in (*matrices, *others)]
    assert sorted(ids) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert all(p.ndim == 2 for p in matrices)
    # qkv, proj, up, down of every block; modulation, up, down of every layer.
    assert len(matrices) == (4 * len(net.blocks) if isinstance(net, DiT) else 3 * len(net.layers))


def optimizer_of(net: DiT) -> tuple[MuonWithAdamW, LambdaLR]:
    matrices, others = split_parameters(net)
    optimizer = MuonWithAdamW(matrices, others, muon_lr=0.02, lr=0.01, weight_decay=0.1)
    return optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))


def step(net: DiT, optimizer: MuonWithAdamW, scheduler: LambdaLR, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, t = torch.randn(4, 1, 8, 8, generator=generator), torch.rand(4, generator=generator)
    optimizer.zero_grad()
    (net(x, t, t) - x).square().mean().backward()
    optimizer.step()
    scheduler.step()


def test_saved_and_restored_it_continues_exactly():
    net = network()
    optimizer, scheduler = optimizer_of(net)
    before = [p.detach().clone() for p in net.parameters()]
    for seed in range(3):
        step(net, optimizer, scheduler, seed)
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert moved == [p.requires_grad for p in net.parameters()]
    assert {group["lr"] for group in optimizer.param_groups} == {0.02 / 4, 0.01 / 4}

    other = copy.deepcopy(net)
    other_optimizer, other_scheduler = optimizer_of(other)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_scheduler.load_state_dict(scheduler.state_dict())
    for seed in (7, 8):
        step(net, optimizer, scheduler, seed)
        step(other, other_optimizer, other_scheduler, seed)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_learning_rate():
    options = {"warmup": 10, "max_steps": 100, "decay_share": 0.4, "final": 0.1}
    factors = [learning_rate_factor(k, **options) for k in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9:61] == [1.0] * 52
    assert factors[80] == pytest.approx(0.55) and factors[100] == pytest.approx(0.1)
    assert learning_rate_factor(50, warmup=0, max_steps=50, decay_share=0.0, final=0.0) == 1.0


def test_a_state_of_another_layout_is_refused():
    """Such as those written when Muon did not take an MLP's matrices: another number of groups, or order."""
    net = MLP((2,), width=8)
    matrices, others = split_parameters(net)
    natural = MuonWithAdamW([], list(net.parameters()), muon_lr=0.0, lr=0.01)
    net(torch.randn(4, 2), torch.rand(4), torch.rand(4)).square().mean().backward()
    natural.step()
    state = copy.deepcopy(natural.state_dict())
    for other in (
        MuonWithAdamW([], [*matrices, *others], muon_lr=0.0, lr=0.01),
        MuonWithAdamW(matrices, others, muon_lr=0.01, lr=0.01),
    ):
        with pytest.raises(UserError, match="laid out as in an older version: give another run_dir"):
            other.load_state_dict(copy.deepcopy(state))
    MuonWithAdamW([], list(net.parameters()), muon_lr=0.0, lr=0.01).load_state_dict(state)


def test_layers_of_a_transformer_that_is_not_ours_go_to_adamw():
    wrapped = torch.nn.ModuleDict({"network": torch.nn.ModuleDict({"transformer": MLP((2,), width=8)})})
    assert split_parameters(wrapped)[0] == []
    assert len(split_parameters(torch.nn.ModuleDict({"network": MLP((2,), width=8)}))[0]) == 9
