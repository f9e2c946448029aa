"""The optimizer of pretraining: steps of the right size, averages that do not disturb, states that come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from customttt import machine
from customttt.lab.optimizer import Optimizer, is_inner, orthogonal


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1))


def images() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def move(optimizer: Optimizer, net: nn.Module, times: int = 1, rate: float = 1e-2) -> None:
    for _ in range(times):
        optimizer.prepare(rate)
        optimizer.step(net(images()).square().sum())


def test_matrices_become_orthogonal() -> None:
    given = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0))
    for matrices in (given, given.mT):
        values = torch.linalg.svdvals(orthogonal(matrices))
        assert values.max() / values.min() < 2.0


@pytest.mark.parametrize("half", [True, False])
def test_they_do_so_in_the_precision_that_the_cpu_multiplies(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: half)
    oriented = orthogonal(torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(oriented, oriented.bfloat16().float()) == half


def test_muon_has_the_inner_matrices_and_convolutions_alone() -> None:
    assert is_inner("unet.down_blocks.0.conv1", torch.zeros(4, 4, 3, 3))
    assert is_inner("text.layers.0.fc1", torch.zeros(4, 4))
    assert not is_inner("unet.conv_in", torch.zeros(4, 4, 3, 3))
    assert not is_inner("unet.norm", torch.zeros(4))
    assert not is_inner("text.token_embedding", torch.zeros(9, 4))


def test_a_step_lowers_the_loss_and_a_rate_of_nothing_moves_nothing() -> None:
    net = network()
    optimizer = Optimizer({"net": net}, torch.float32)
    before = [p.clone() for p in net.parameters()]
    move(optimizer, net, rate=0.0)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
    first = net(images()).square().sum().item()
    move(optimizer, net, times=20)
    assert net(images()).square().sum().item() < 0.7 * first


def test_weights_without_a_gradient_stay() -> None:
    net = network()
    optimizer = Optimizer({"net": net}, torch.float32)
    before = net[3].weight.clone()
    optimizer.prepare(1e-2)
    optimizer.step(net[2](net[0](images())).square().sum())
    assert torch.equal(net[3].weight, before)


def test_the_networks_compute_in_their_precision_and_the_weights_stay_whole() -> None:
    net = network()
    optimizer = Optimizer({"net": net}, torch.bfloat16)
    optimizer.prepare(1e-5)
    optimizer.step(net(images().bfloat16()).square().sum())
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert {w.dtype for w in optimizer.weight.values()} == {torch.float32}
    assert not torch.equal(optimizer.weight["net.0.weight"], net[0].weight.float())


def test_averages_are_shown_for_a_while() -> None:
    net = network()
    optimizer = Optimizer({"net": net}, torch.float32)
    move(optimizer, net, times=5)
    training = net[0].weight.clone()
    with optimizer.averages():
        assert torch.equal(net[0].weight, optimizer.average["net.0.weight"])
        assert not torch.equal(net[0].weight, training)
    assert torch.equal(net[0].weight, training)


def test_a_saved_state_goes_on_in_the_same_weights() -> None:
    net, other = network(), network()
    optimizer, again = Optimizer({"net": net}, torch.float32), Optimizer({"net": other}, torch.float32)
    move(optimizer, net, times=3)
    again.load_state_dict(optimizer.state_dict())
    for one, owner in ((optimizer, net), (again, other)):
        move(one, owner, times=2)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(optimizer.average[name], value) for name, value in again.average.items())
