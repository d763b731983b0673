"""The part-aware operation whose parts have weights of their own; `per_edge` has its definition."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from torch import softmax

from autoreid.spaces.reid_cell.operations import build_operation
from tests.helpers import per_edge

PARTS, HEIGHT, WIDTH = 4, 8, 3


def build(name, channels=6, stride=1, affine=False, spread=1.0):
    torch.manual_seed(0)
    module = build_operation(name, channels, stride, affine, PARTS).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module


def images(batch=5, channels=6, height=HEIGHT, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, WIDTH, dtype=torch.float64, generator=generator)


def permuted(x, order):
    """A map whose parts are in another order."""
    return x.unflatten(2, (PARTS, -1))[:, :, order].flatten(2, 3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("order", [[1, 0, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0]])
def test_it_sees_where_a_part_is_and_part_aware_does_not(order, training):
    x, found = images(), {}
    for name in ("part_aware", "part_conv"):
        module = build(name)
        module(x)  # the running statistics are no longer the same for all channels
        module.train(training)
        moved, output = module(permuted(x, order)), module(x)
        found[name] = (moved - permuted(output, order)).abs().mean() / output.std()
    assert found["part_aware"] < 1e-9
    assert found["part_conv"] > 0.05


def attention_entropy(name, x):
    """The mean entropy of a fresh operation's attention."""
    torch.manual_seed(0)
    oracle = per_edge.build_operation(name, x.shape[1], 1, False, PARTS).double()
    found = []
    with mock.patch.object(
        torch, "softmax", lambda *call, **also: found.append(softmax(*call, **also)) or found[0]
    ):
        oracle(x)
    (weights,) = found
    assert weights.shape == (len(x), PARTS, PARTS)
    return -(weights * weights.log()).sum(-1).mean().item()


def test_its_attention_does_not_start_uniform():
    x = images(32, 18)
    assert attention_entropy("part_aware", x) > 0.99 * math.log(PARTS)
    assert attention_entropy("part_conv", x) < 0.95 * math.log(PARTS)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [8, 9, 4])
def test_one_image_in_evaluation(stride, affine, height):
    module = build("part_conv", stride=stride, affine=affine)
    oracle = per_edge.build_operation("part_conv", 6, stride, affine, PARTS).double()
    for _ in range(3):
        module(torch.randn(4, 6, height, WIDTH, dtype=torch.float64))
    oracle.load_state_dict(module.state_dict())
    module.eval(), oracle.eval()
    x = images(1, height=height)
    torch.testing.assert_close(module(x), oracle(x))
    # The result for an image does not depend on the other images.
    torch.testing.assert_close(module(torch.cat([x, torch.randn_like(x)]))[:1], module(x))


def test_parts_inform_each_other():
    """A change in the lowest part changes every row, which only attention can do."""
    module, x = build("part_conv", spread=0.1).eval(), images(1)
    changed = x.clone()
    changed[:, :, -1] += 1
    moved = (module(changed) - module(x)).abs().amax((0, 1, 3))
    assert (moved > 1e-6).all()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", ["part_aware", "part_conv"])
def test_a_single_part_on_two_edges(name):
    torch.manual_seed(0)
    module = build_operation(name, 6, 1, False, parts=1, edges=2).double()
    x = images().requires_grad_()
    together = module(x)
    alone = torch.cat([module(x, slice(edge, edge + 1)) for edge in range(2)], dim=1)
    torch.testing.assert_close(together, alone)
    cotangent = torch.randn_like(together)
    gradients = [torch.autograd.grad((output * cotangent).sum(), x)[0] for output in (together, alone)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("height", [3, 1])
def test_fewer_rows_than_parts_are_refused(height):
    with pytest.raises(ValueError, match=f"map of {height} rows cannot be cut into {PARTS} parts"):
        build("part_conv")(images(height=height))


@pytest.mark.parametrize("stride", [1, 2])
def test_it_keeps_the_same_maps_as_part_aware(stride):
    """The norm of the body vectors adds vectors to what is kept for the backward pass, and no map."""
    kept = {}
    for name in ("part_aware", "part_conv"):
        maps = kept[name] = []

        def pack(tensor, maps=maps):
            if tensor.dim() > 2 and tensor.shape[0] == 5 and tensor.shape[-1] in (WIDTH, 2, HEIGHT * WIDTH):
                maps.append((tensor.data_ptr(), tensor.numel()))
            return tensor

        x = images().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            build(name, stride=stride)(x).sum().backward()
    sizes = {name: sorted(dict(maps).values()) for name, maps in kept.items()}
    assert sizes["part_aware"]
    assert sum(sizes["part_conv"]) <= sum(sizes["part_aware"])


def test_it_is_exported_for_any_number_of_images():
    module = build("part_conv").eval()
    with torch.no_grad():
        dynamic = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(module, (images(2),), dynamic_shapes=dynamic).module()
        for batch in (1, 5):
            torch.testing.assert_close(exported(images(batch)), module(images(batch)))
