"""The steps of batch normalisation, each of which reads a map (B, C, ...) once.

y = (x - mean)·inverse·weight + bias, where inverse is 1/sqrt(variance + eps). All tensors except the maps x and y are
(C,), in float32 for maps in half precision and in the map's dtype otherwise.

CUDA has kernels for these steps, written for torch's SyncBatchNorm. They need a map that is `dense`. Other devices have
no such kernels; there the same values are computed by vectorised arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Return a map in the dtype of its statistics."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """Return a map in channels-last layout if `like` (by default the map itself) has it, otherwise contiguous.

    A map and its gradient need the same layout, because the kernels check only one of them.
    """
    model = x if like is None else like
    last = (
        model.dim() == 4
        and not model.is_contiguous()
        and model.is_contiguous(memory_format=torch.channels_last)
    )
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return a view of values (C,) that broadcasts over a map."""
    return values.view(-1, *[1] * (x.dim() - 2))


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel, over this rank's batch."""
    if x.is_cuda:
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)  # no running statistics to update
        return mean, variance
    x = wide(x)
    return centre(x, torch.empty_like(x))


def normalised(
    x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return the output y, in the dtype and layout of x."""
    if x.is_cuda:
        output: Tensor = torch.batch_norm_elemt(x, weight, bias, mean, inverse, 0.0)  # eps is part of inverse
        return output
    y = wide(x) - per_channel(mean, x)
    scale(y, inverse, weight, bias)
    return y.to(x.dtype)


def gradient_sums(dy: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ dy and Σ dy·(x - mean) of each channel, over this rank's batch."""
    if x.is_cuda:
        sums, products, *_ = torch.batch_norm_backward_reduce(dy, x, mean, inverse, None, True, False, False)
        return sums, products
    dy = wide(dy)
    return _sum(dy), _sum((wide(x) - per_channel(mean, x)).mul_(dy))


def input_gradient(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    sums: Tensor,
    products: Tensor,
    count: Tensor,
) -> Tensor:
    """Return the gradient of x, in the dtype and layout of x.

    Args:
        dy: the gradient of the output.
        x: the input.
        mean: over the batch of all ranks.
        inverse: 1/sqrt(variance + eps), over the batch of all ranks.
        weight: or None for ones.
        sums: Σ dy over the batch of all ranks.
        products: Σ dy·(x - mean) over the batch of all ranks.
        count: (1,), int32: the number of values per channel in that batch.
    """
    if x.is_cuda:
        gradient: Tensor = torch.batch_norm_backward_elemt(
            dy, x, mean, inverse, weight, sums, products, count
        )
        return gradient
    dx = wide(x) - per_channel(mean, x)
    dx.mul_(per_channel(inverse.square() * products / -count, x)).add_(dy)
    dx.sub_(per_channel(sums / count, x))
    scale(dx, inverse, weight, None)
    return dx.to(x.dtype)


def centre(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Write x - mean to `out`; return the mean and the biased variance of each channel."""
    count = x.numel() // x.shape[1]
    mean = _sum(x) / count
    torch.sub(x, per_channel(mean, x), out=out)
    variance = torch.linalg.vector_norm(_rows(out), dim=2).square().sum(0) / count
    return mean, variance


def scale(centred: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Compute the output y from x - mean, in place."""
    centred.mul_(per_channel(inverse if weight is None else inverse * weight, centred))
    if bias is not None:
        centred.add_(per_channel(bias, centred))


def _rows(x: Tensor) -> Tensor:
    """Flatten (B, C, ...) to (B, C, values)."""
    return x.reshape(*x.shape[:2], -1)


def _sum(x: Tensor) -> Tensor:
    """Return the sum of each channel, (C,)."""
    return _rows(x).sum(2).sum(0)
