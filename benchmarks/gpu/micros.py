"""Single operations of the supernet's first stage, in alternative implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.harness import Case, Check, Figures
from benchmarks.gpu.meters import microseconds

#: Images, channels, edges, and height and width of the maps.
FULL, TINY = (64, 16, 5, 64, 32), (2, 4, 2, 8, 4)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: By name, an implementation of an operation, and the tensors of which the gradients are computed.
Forms = dict[str, tuple[Callable[[], Tensor], list[Tensor]]]


class Inputs:
    """The input of a node, the maps of E edges concatenated along the channels, and weights."""

    def __init__(self, check: Check, dtype: torch.dtype) -> None:
        self.check = check
        B, C, E, H, W = check.pick(FULL, TINY)
        self.channels, self.edges = C, E

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=check.device, dtype=dtype).requires_grad_()

        self.input, self.maps = random(B, C, H, W), random(B, E * C, H, W)
        self.last = self.maps.detach().to(memory_format=torch.channels_last).requires_grad_()
        self.depthwise, self.pointwise = random(E * C, 1, 3, 3), random(E * C, C, 1, 1)
        self.scale = torch.rand(E * C, device=check.device).requires_grad_()
        self.zeros = torch.zeros(E * C, device=check.device)

    def times(self, forms: Forms) -> Figures:
        """Return the microseconds of a forward and backward pass of each form."""
        figures = {}
        for name, (forward, inputs) in forms.items():
            output = forward()
            gradient = torch.randn_like(output)

            def both(
                forward: Callable[[], Tensor] = forward,
                inputs: list[Tensor] = inputs,
                gradient: Tensor = gradient,
            ) -> None:
                torch.autograd.grad(forward(), inputs, gradient)

            figures[f"{name}_us"] = microseconds(both, self.check.device)
        return figures


def norms(check: Check, dtype: torch.dtype) -> Figures:
    """Measure batch norm. Whether it has a bias decides which kernel torch uses."""
    inputs = Inputs(check, dtype)

    def norm(x: Tensor, bias: Tensor | None) -> Tensor:
        return F.batch_norm(x, None, None, inputs.scale, bias, training=True)

    forms: Forms = {
        f"{bias_name}{layout}": (partial(norm, x, bias), [x, inputs.scale])
        for layout, x in (("", inputs.maps), ("_channels_last", inputs.last))
        for bias_name, bias in (("no_bias", None), ("zero_bias", inputs.zeros))
    }
    return inputs.times(forms)


def depthwise(check: Check, dtype: torch.dtype) -> Figures:
    """Measure depthwise 3×3 convolutions of all edges, with a copy of the input for each edge or a single input."""
    inputs = Inputs(check, dtype)
    x, weight, C, E = inputs.input, inputs.depthwise, inputs.channels, inputs.edges
    forms: Forms = {
        "copies": (lambda: F.conv2d(x.repeat(1, E, 1, 1), weight, padding=1, groups=E * C), [x, weight]),
        # Channel c of the input gives the output channels E·c to E·c + E - 1.
        "multiplier": (lambda: F.conv2d(x, weight, padding=1, groups=C), [x, weight]),
    }
    return inputs.times(forms)


def separable(check: Check, dtype: torch.dtype) -> Figures:
    """Measure a depthwise 3×3 and a 1×1 convolution of all edges, in sequence or as one dense convolution."""
    inputs = Inputs(check, dtype)
    x, depthwise, pointwise, C, E = (
        inputs.input, inputs.depthwise, inputs.pointwise, inputs.channels, inputs.edges
    )  # fmt: skip

    def two() -> Tensor:
        y = F.conv2d(x.repeat(1, E, 1, 1), depthwise, padding=1, groups=E * C)
        mapped = pointwise.view(E, C, C) @ y.unflatten(1, (E, C)).flatten(3)
        return mapped.flatten(1, 2).unflatten(2, x.shape[2:])

    def dense() -> Tensor:
        weight = pointwise.view(E, C, C, 1, 1) * depthwise.view(E, 1, C, 3, 3)
        return F.conv2d(x, weight.flatten(0, 1), padding=1)

    leaves = [x, depthwise, pointwise]
    return inputs.times({"two": (two, leaves), "dense": (dense, leaves)})


def pointwise(check: Check, dtype: torch.dtype) -> Figures:
    """Measure 1×1 convolutions of all edges, as a grouped convolution or as a batched product."""
    inputs = Inputs(check, dtype)
    x, weight, C, E = inputs.maps, inputs.pointwise, inputs.channels, inputs.edges

    def product() -> Tensor:
        mapped = weight.view(E, C, C) @ x.unflatten(1, (E, C)).flatten(3)
        return mapped.flatten(1, 2).unflatten(2, x.shape[2:])

    forms: Forms = {
        "convolution": (lambda: F.conv2d(x, weight, groups=E), [x, weight]),
        "product": (product, [x, weight]),
    }
    return inputs.times(forms)


def cases(check: Check) -> Iterator[Case]:
    """Yield each operation in both precisions."""
    for precision, dtype in PRECISIONS.items():
        for name, operation in (
            ("norms", norms),
            ("depthwise", depthwise),
            ("pointwise", pointwise),
            ("separable", separable),
        ):
            yield Case(f"{name}, {precision}", partial(operation, check, dtype))
