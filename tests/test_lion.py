"""Lion is lion-pytorch's, bit for bit."""

from __future__ import annotations

import torch
from lion_pytorch import Lion as Reference

from customttt.lion import Lion


def test_every_step_is_the_reference_s() -> None:
    """Two groups with rates of their own, one of which falls; one parameter without a gradient now and then."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 8), (16,), (3, 5, 2)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    sides = []
    for kind in (Lion, Reference):
        parameters = [torch.nn.Parameter(one.clone()) for one in start]
        groups = [{"params": parameters[:2], "lr": 3e-3}, {"params": parameters[2:], "lr": 1e-2}]
        sides.append((parameters, kind(groups, betas=(0.9, 0.99), weight_decay=0.1)))
    for step in range(5):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for parameters, optimizer in sides:
            for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                parameter.grad = None if (step, index) in {(0, 1), (3, 2)} else gradient.clone()
            optimizer.param_groups[1]["lr"] = 1e-2 * (1 - step / 5)
            optimizer.step()
    (ours, optimizer), (theirs, reference) = sides
    assert all(map(torch.equal, ours, theirs))
    kept, known = (one.state_dict()["state"] for one in (optimizer, reference))
    assert kept.keys() == known.keys()
    assert all(torch.equal(kept[index]["exp_avg"], known[index]["exp_avg"]) for index in known)
