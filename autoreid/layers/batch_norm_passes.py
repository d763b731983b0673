"""The passes over a map (B, C, ...) that batch normalisation consists of.

y = (x - mean)·inverse·weight + bias, where inverse is 1/sqrt(variance + eps). All but the maps x and y are (C,), in
float32 for maps in half precision, and in the map's dtype otherwise.

CUDA has kernels for these passes, made for torch's SyncBatchNorm. They read maps that are `dense`. On other devices
the same is computed by vectorised arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """A map in the dtype of its statistics."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """A map, contiguous or channels-last: whichever `like` or, by default, the map itself is, or else contiguous.

    A map and its gradient have to be alike: the kernels look at one of them only.
    """
    model = x if like is None else like
    last = (
        model.dim() == 4
        and not model.is_contiguous()
        and model.is_contiguous(memory_format=torch.channels_last)
    )
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as a view that broadcasts over a map."""
    return values.view(-1, *[1] * (x.dim() - 2))


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance of each channel, over this rank's batch."""
    if x.is_cuda:
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)  # there are none to update
        return mean, variance
    x = wide(x)
    return centre(x, torch.empty_like(x))


def normalised(
    x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The output y, in the dtype and layout of x."""
    if x.is_cuda:
        output: Tensor = torch.batch_norm_elemt(x, weight, bias, mean, inverse, 0.0)  # eps is part of inverse
        return output
    y = wide(x) - per_channel(mean, x)
    scale(y, inverse, weight, bias)
    return y.to(x.dtype)


def gradient_sums(dy: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Σ dy and Σ dy·(x - mean) of each channel, over this rank's batch."""
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
    """The gradient of x, in its dtype and layout.

    Args:
        sums: Σ dy over the batch of all ranks.
        products: Σ dy·(x - mean) over the batch of all ranks.
        count: (1,), int32: how many values of a channel that batch has.
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
    """Writes x - mean into `out`; returns the mean and the biased variance of each channel."""
    count = x.numel() // x.shape[1]
    mean = _sum(x) / count
    torch.sub(x, per_channel(mean, x), out=out)
    variance = torch.linalg.vector_norm(_rows(out), dim=2).square().sum(0) / count
    return mean, variance


def scale(centred: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Turns x - mean into the output y, in place."""
    centred.mul_(per_channel(inverse if weight is None else inverse * weight, centred))
    if bias is not None:
        centred.add_(per_channel(bias, centred))


def _rows(x: Tensor) -> Tensor:
    """(B, C, ...) -> (B, C, values)."""
    return x.reshape(*x.shape[:2], -1)


def _sum(x: Tensor) -> Tensor:
    return _rows(x).sum(2).sum(0)
