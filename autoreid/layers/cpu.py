"""Implementations of layers that are several times faster on CPUs than the ones that GPUs use.

Both implementations of a layer compute the same values, up to rounding. Layers choose between them only by
`uses_cpu_form`. So a test can run on a CPU what GPUs run: see `gpu_forms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from autoreid.layers import batch_norm_passes as passes

#: A map of this size nearly fills the cache of a core.
_CACHE_BYTES = 512 * 1024

_gpu_forms = False


def uses_cpu_form(x: Tensor) -> bool:
    """Return whether a layer should use the implementation for CPUs on this input."""
    return x.device.type == "cpu" and not _gpu_forms


@contextmanager
def gpu_forms() -> Iterator[None]:
    """Make layers use the implementation for GPUs on CPU tensors too.

    The backward pass has to run inside the context as well, because it may recompute parts of the forward pass.
    """
    global _gpu_forms
    before, _gpu_forms = _gpu_forms, True
    try:
        yield
    finally:
        _gpu_forms = before


def supports_batch_norm(x: Tensor) -> bool:
    """Return whether `batch_norm` supports this input. PyTorch's implementation is not vectorised for such inputs."""
    if torch.compiler.is_compiling() or not x.is_contiguous():
        return False
    return x.dtype in (torch.float32, torch.float64) and x.dim() > 2 and x[:, 0].numel() > 1


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Compute `torch.nn.functional.batch_norm` in training, for a map (B, C, ...), by vectorised operations."""
    output, mean, variance = _BatchNorm.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    result: Tensor = output
    return result


class _BatchNorm(Function):
    """Batch normalisation with a vectorised forward pass and PyTorch's own backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, and the mean and the biased variance of each channel, (C,)."""
        # Allocated, not a view of another tensor: an in-place addition to a view makes the backward pass copy it.
        output = torch.empty_like(x)
        mean, variance = passes.centre(x, output)
        inverse = torch.rsqrt(variance + eps)
        passes.scale(output, inverse, weight, bias)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias. They are differentiable, because PyTorch's function is."""
        x, weight, mean, inverse = ctx.saved_tensors
        needed = [*ctx.needs_input_grad[:3]]
        found = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, None, None, mean, inverse, True, ctx.eps, needed
        )
        return (*(value if wanted else None for value, wanted in zip(found, needed, strict=True)), None)


def max_pool(x: Tensor, stride: int) -> Tensor:
    """Compute a 3×3 max pool with padding 1, in the channels-last layout."""
    return F.max_pool2d(x.contiguous(memory_format=torch.channels_last), 3, stride, 1).contiguous()


def avg_pool(x: Tensor, stride: int) -> Tensor:
    """Compute a 3×3 average pool with padding 1 that does not count the padding, as a convolution."""
    ones = x.new_ones(1, 1, 3, 3)
    counts = F.conv2d(x.new_ones(1, 1, *x.shape[2:]), ones, None, stride, 1)
    sums = F.conv2d(x, ones.expand(x.shape[1], 1, 3, 3), None, stride, 1, groups=x.shape[1])
    return sums * counts.reciprocal()


def dilated_depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Compute a depthwise convolution with dilation 2 and stride 1 by convolutions without dilation.

    With dilation 2 an output pixel reads only input pixels whose row and column have the same parity as its own. So
    the map is split into four grids, which are convolved without dilation. PyTorch's backward pass of a dilated
    convolution takes four times as long.

    Args:
        x: (B, C, H, W), repeated E times along the channels.
        weight: (E·C, 1, k, k).

    Returns:
        (B, E·C, H, W).
    """
    wide, padding = len(weight), (weight.shape[2] - 1) // 2
    B, C, H, W = x.shape
    x = F.pad(x, (0, W % 2, 0, H % 2))
    height, width = x.shape[2] // 2, x.shape[3] // 2
    grids = x.view(B, C, height, 2, width, 2).permute(0, 3, 5, 1, 2, 4).reshape(4 * B, C, height, width)
    if wide > C:
        grids = grids.repeat(1, wide // C, 1, 1)
    y = F.conv2d(grids, weight, None, 1, padding, 1, wide)
    y = y.view(B, 2, 2, wide, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(B, wide, 2 * height, 2 * width)[:, :, :H, :W].contiguous()


def multiplies_pointwise(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Return whether a CPU computes a 1×1 convolution faster as a matrix product than as a convolution.

    With one group the product has the faster backward pass. With several groups the product copies the weights for
    each image, so that it is only faster if the map has at least as many pixels as input channels.
    """
    if groups == 1:
        return torch.is_grad_enabled()
    return x.shape[2] * x.shape[3] >= weight.shape[1]


def fills_cache(x: Tensor, channels: int) -> bool:
    """Return whether a map of the batch and size of x with these channels nearly fills the cache of a core.

    The layers that read it next then find less of it there if several such maps are computed at once.
    """
    return x.numel() // x.shape[1] * channels * x.element_size() >= _CACHE_BYTES
