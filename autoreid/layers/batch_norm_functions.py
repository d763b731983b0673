"""The autograd function of batch normalisation of several maps over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

from autoreid.distributed.collectives import gather, sum_over_ranks, world_size
from autoreid.layers import batch_norm_passes as passes

T = TypeVar("T")
Parameters = Sequence[Tensor | None]


def count_over_ranks(x: Tensor) -> int:
    """Return the number of values per channel in the batch over all ranks."""
    return x.numel() // x.shape[1] * world_size()


def normalise_over_ranks(
    xs: Sequence[Tensor], weights: Parameters, biases: Parameters, eps: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Normalise several maps (B, C, ...) with the statistics of the batch over all ranks.

    Returns:
        The outputs, the means and the biased variances: one of each per map, (C,) for the statistics.
    """
    xs = [passes.dense(x) for x in xs]
    with torch.no_grad():
        mean, variance = _combine([passes.mean_and_variance(x) for x in xs])
        inverse = torch.rsqrt(variance + eps)
    parameters = (
        None if values is None else values.to(mean.dtype).contiguous() for values in (*weights, *biases)
    )
    outputs = BatchNormOverRanks.apply(eps, mean, inverse, *xs, *parameters)
    sizes = [x.shape[1] for x in xs]
    return list(outputs), list(mean.split(sizes)), list(variance.split(sizes))


def _combine(statistics: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Combine each map's mean and variance on this rank to those over all ranks, each (ΣC,) for all maps.

    It takes one collective and is differentiable.
    """
    means, variances = zip(*statistics, strict=True)
    means_of_ranks, variances_of_ranks = gather(torch.cat([*means, *variances])[None]).chunk(2, dim=1)
    # The variance of the ranks' means is accurate where E[x²] - E[x]² would cancel.
    spread, mean = torch.var_mean(means_of_ranks, dim=0, correction=0)
    return mean, variances_of_ranks.mean(0) + spread


class BatchNormOverRanks(Function):
    """Batch normalisation of n maps, given their statistics over all ranks.

    The gradient of a map includes the path through the statistics and is that of the sum of all ranks' losses. The
    gradients of weights and biases are this rank's part, to be averaged over the ranks like those of all parameters.
    """

    @staticmethod
    def forward(
        ctx: Any, eps: float, mean: Tensor, inverse: Tensor, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Normalise the maps.

        Args:
            ctx: autograd's context.
            eps: as in `torch.nn.functional.batch_norm`.
            mean: (ΣC,).
            inverse: (ΣC,), 1/sqrt(variance + eps).
            inputs: n maps, n weights and n biases.
        """
        ctx.eps = eps
        ctx.save_for_backward(mean, inverse, *inputs)
        xs, weights, biases = _thirds(inputs)
        sizes = [x.shape[1] for x in xs]
        columns = xs, mean.split(sizes), inverse.split(sizes), weights, biases
        return tuple(passes.normalised(*row) for row in zip(*columns, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, with one collective; if they must be differentiable, autograd computes them."""
        mean, inverse, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            return None, None, None, *_gradients_by_autograd(gradients, inputs, needed, ctx.eps)
        return None, None, None, *_gradients(gradients, inputs, needed, mean, inverse)


def _thirds(inputs: Sequence[T]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Split a sequence of n maps, n weights and n biases into the three."""
    n = len(inputs) // 3
    return inputs[:n], inputs[n : 2 * n], inputs[2 * n :]


def _gradients(
    gradients: Sequence[Tensor], inputs: Parameters, needed: Sequence[bool], mean: Tensor, inverse: Tensor
) -> list[Tensor | None]:
    xs, weights, _ = _thirds(inputs)
    of_xs, of_weights, of_biases = _thirds(needed)
    sizes = [x.shape[1] for x in xs]
    dys = [passes.dense(dy, like=x) for dy, x in zip(gradients, xs, strict=True)]
    maps = list(zip(dys, xs, mean.split(sizes), inverse.split(sizes), strict=True))
    sums, products = zip(*(passes.gradient_sums(*row) for row in maps), strict=True)
    flat = torch.cat([*sums, *products])
    found: list[Tensor | None] = [None] * len(xs)
    if any(of_xs):
        total_sums, total_products = (half.split(sizes) for half in sum_over_ranks(flat).chunk(2))
        counts = _count_tensors(xs)
        rows = zip(maps, weights, total_sums, total_products, counts, of_xs, strict=True)
        found = [passes.input_gradient(*row, *others) if wanted else None for row, *others, wanted in rows]
    of_scales = (flat.chunk(2)[1] * inverse).split(sizes) if any(of_weights) else sums
    for values, wanted in ((of_scales, of_weights), (sums, of_biases)):
        found += [value if want else None for value, want in zip(values, wanted, strict=True)]
    return found


def _count_tensors(xs: Sequence[Tensor]) -> list[Tensor]:
    """Return `count_over_ranks` of each map as a tensor (1,), which the CUDA kernels need; equal counts share one."""
    counts = [count_over_ranks(x) for x in xs]
    tensors = {
        count: torch.full((1,), count, dtype=torch.int32, device=xs[0].device)
        for count in dict.fromkeys(counts)
    }
    return [tensors[count] for count in counts]


def _gradients_by_autograd(
    gradients: Sequence[Tensor], inputs: Parameters, needed: Sequence[bool], eps: float
) -> list[Tensor | None]:
    # Views, because one map may have been computed from another, and its gradient must not include that path.
    views = [None if x is None else x.view_as(x) for x in inputs]
    outputs = zip(arithmetic(*_thirds(views), eps), gradients, strict=True)
    ys, dys = zip(*((y, dy) for y, dy in outputs if y.requires_grad), strict=True)
    wanted = [x for x, want in zip(views, needed, strict=True) if want and x is not None]
    found = iter(torch.autograd.grad(ys, wanted, dys, create_graph=True))
    return [next(found) if want else None for want in needed]


def arithmetic(xs: Sequence[Tensor], weights: Parameters, biases: Parameters, eps: float) -> list[Tensor]:
    """Return the outputs of `normalise_over_ranks`, computed by operations that autograd can differentiate twice."""
    statistics = []
    for x in xs:
        others = [dim for dim in range(x.dim()) if dim != 1]
        variance, mean = torch.var_mean(passes.wide(x), dim=others, correction=0)
        statistics.append((mean, variance))
    mean, variance = _combine(statistics)
    sizes = [x.shape[1] for x in xs]
    columns = xs, mean.split(sizes), torch.rsqrt(variance + eps).split(sizes), weights, biases
    outputs = []
    for x, centre, inverse, weight, bias in zip(*columns, strict=True):
        scale = inverse if weight is None else inverse * weight
        y = (passes.wide(x) - passes.per_channel(centre, x)) * passes.per_channel(scale, x)
        outputs.append((y if bias is None else y + passes.per_channel(bias, x)).to(x.dtype))
    return outputs
