"""Compare a fused network with the plain one that it must equal: values, derivatives, and what recomputation keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from autoreid.layers.batch_norm import frozen_statistics

#: Tolerances of a comparison in float64.
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def assert_same(found: Mapping[object, torch.Tensor], expected: Mapping[object, torch.Tensor]) -> None:
    """Compare tensors by name."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def assert_all_close(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float = 1e-9
) -> None:
    """Compare tensors in order."""
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance)


def statistics(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return the running statistics. Fused norms do not count batches."""
    return {name: value for name, value in net.named_buffers() if not name.endswith("num_batches_tracked")}


def first_derivatives(
    net: nn.Module, *inputs: torch.Tensor | None
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Return the output with the gradients of the inputs, and the gradients of the weights by name."""
    leaves, weights = _tensors(inputs), dict(net.named_parameters())
    output = net(*inputs)
    gradients = torch.autograd.grad((output * output.detach().cos()).sum(), [*leaves, *weights.values()])
    return [output, *gradients[: len(leaves)]], dict(zip(weights, gradients[len(leaves) :], strict=True))


def second_derivatives(net: nn.Module, *inputs: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Return the gradient in the inputs of the squared length of the gradient in the weights."""
    with frozen_statistics(net):
        loss = net(*inputs).tanh().sum()
        gradients = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        length = sum(gradient.square().sum() for gradient in gradients)
        return torch.autograd.grad(length, _tensors(inputs))


def assert_recomputing_only_saves_memory(
    plain: nn.Module,
    recomputing: nn.Module,
    images: torch.Tensor,
    mixing: Mapping[str, torch.Tensor],
    share: float,
) -> None:
    """Compare a supernet with one that recomputes its cells: bit-equal, with at most a share of the kept bytes."""
    expected, kept = _step(plain, images, mixing)
    found, kept_by_recomputing = _step(recomputing, images, mixing)
    assert all(torch.equal(value, wanted) for value, wanted in zip(found, expected, strict=True))
    assert kept_by_recomputing < share * kept


def _step(
    net: nn.Module, images: torch.Tensor, mixing: Mapping[str, torch.Tensor]
) -> tuple[list[torch.Tensor], int]:
    """Return outputs, gradients and buffers, and the number of bytes that autograd has saved for the gradients."""
    sizes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        embedding, logits = net(images, mixing)
    leaves = [*mixing.values(), *(weight for weight in net.parameters() if weight.requires_grad)]
    gradients = torch.autograd.grad(embedding.sin().sum() + logits.square().sum(), leaves)
    return [embedding, logits, *gradients, *net.buffers()], sum(sizes)


def _tensors(inputs: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    return [value for value in inputs if value is not None]
