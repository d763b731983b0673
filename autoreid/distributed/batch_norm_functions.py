"""The autograd functions of batch normalisation: over several ranks, and on one CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

from autoreid.distributed import batch_norm_passes as passes
from autoreid.distributed.collectives import gather, sum_over_ranks, world_size

Anything = TypeVar("Anything")


def statistics_over_ranks(xs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The means and biased variances of several maps over all ranks, each (ΣC,), by one collective."""
    return _combine([passes.mean_and_variance(x) for x in xs])


def _combine(statistics: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """This rank's means and variances -> those over all ranks; differentiable."""
    means, variances = zip(*statistics, strict=True)
    means_of_ranks, variances_of_ranks = gather(torch.cat([*means, *variances])[None]).chunk(2, dim=1)
    # The spread of the ranks' means is exact where E[x²] - E[x]² would cancel.
    spread, mean = torch.var_mean(means_of_ranks, dim=0, correction=0)
    return mean, variances_of_ranks.mean(0) + spread


class BatchNormOverRanks(Function):
    """Batch normalisation of n maps with the statistics of the batch over all ranks.

    The gradient of a map is that of the sum of all ranks' losses. The gradients of weights and biases are this
    rank's share, which whoever owns the parameters averages over the ranks.
    """

    @staticmethod
    def forward(
        ctx: Any, eps: float, mean: Tensor, inverse: Tensor, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The statistics of `statistics_over_ranks` (inverse is 1/sqrt(variance + eps)), n maps, weights and biases."""
        ctx.eps = eps
        ctx.save_for_backward(mean, inverse, *inputs)
        xs, weights, biases = _thirds(inputs)
        sizes = [x.shape[1] for x in xs]
        rows = zip(xs, mean.split(sizes), inverse.split(sizes), weights, biases, strict=True)
        return tuple(passes.normalised(*row) for row in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """By one collective. If the gradient is to be differentiated itself, by the formulas' own derivative."""
        mean, inverse, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            return None, None, None, *_gradients_by_autograd(gradients, inputs, needed, ctx.eps)
        return None, None, None, *_gradients(gradients, inputs, needed, mean, inverse)


def _thirds(inputs: Sequence[Anything]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Maps, weights and biases."""
    n = len(inputs) // 3
    return inputs[:n], inputs[n : 2 * n], inputs[2 * n :]


def _gradients(
    gradients: Sequence[Tensor],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    mean: Tensor,
    inverse: Tensor,
) -> list[Tensor | None]:
    xs, weights, _ = _thirds(inputs)
    of_xs, of_weights, of_biases = _thirds(needed)
    sizes = [x.shape[1] for x in xs]
    maps = list(zip(gradients, xs, mean.split(sizes), inverse.split(sizes), strict=True))
    sums, products = zip(*(passes.gradient_sums(*row) for row in maps), strict=True)
    flat = torch.cat([*sums, *products])
    found: list[Tensor | None] = [None] * len(xs)
    if any(of_xs):
        total_sums, total_products = (half.split(sizes) for half in sum_over_ranks(flat).chunk(2))
        for place, (row, wanted) in enumerate(zip(maps, of_xs, strict=True)):
            if wanted:
                count = count_over_ranks(xs[place])
                found[place] = passes.input_gradient(
                    *row, weights[place], total_sums[place], total_products[place], count
                )
    scaled = (flat.chunk(2)[1] * inverse).split(sizes) if any(of_weights) else sums
    found += [value if wanted else None for value, wanted in zip(scaled, of_weights, strict=True)]
    return found + [value if wanted else None for value, wanted in zip(sums, of_biases, strict=True)]


def _gradients_by_autograd(
    gradients: Sequence[Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], eps: float
) -> list[Tensor | None]:
    # Aliases: one map may have been computed from another, and its gradient is not to go on to that one here.
    inputs = [None if x is None else x.view_as(x) for x in inputs]
    outputs = arithmetic(inputs, eps)
    pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
    wanted = [x for x, want in zip(inputs, needed, strict=True) if want and x is not None]
    found = iter(
        torch.autograd.grad([y for y, _ in pairs], wanted, [dy for _, dy in pairs], create_graph=True)
    )
    return [next(found) if want else None for want in needed]


def arithmetic(inputs: Sequence[Tensor | None], eps: float) -> list[Tensor]:
    """What `BatchNormOverRanks` computes of n maps, weights and biases, as operations of autograd's own."""
    xs, weights, biases = _thirds(inputs)
    statistics = []
    for x in xs:
        others = [dim for dim in range(x.dim()) if dim != 1]
        variance, mean = torch.var_mean(passes.wide(x), dim=others, correction=0)
        statistics.append((mean, variance))
    mean, variance = _combine(statistics)
    sizes = [x.shape[1] for x in xs]
    scales = torch.rsqrt(variance + eps).split(sizes)
    outputs = []
    for x, centre, scale, weight, bias in zip(xs, mean.split(sizes), scales, weights, biases, strict=True):
        scale = scale if weight is None else scale * weight
        y = (passes.wide(x) - passes.per_channel(centre, x)) * passes.per_channel(scale, x)
        outputs.append((y if bias is None else y + passes.per_channel(bias, x)).to(x.dtype))
    return outputs


def count_over_ranks(x: Tensor) -> int:
    """How many values of a channel the batch over all ranks has."""
    return x.numel() // x.shape[1] * world_size()


class BatchNormOnCpu(Function):
    """Batch normalisation on one CPU by vectorised passes. Backward is torch's own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, ...) -> the same, and the mean and the biased variance of each channel."""
        # Not a view of what is computed here: who adds to it in place would have it copied in the backward pass.
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
        """Differentiable itself, as torch's function for it is."""
        x, weight, mean, inverse = ctx.saved_tensors
        needed = [*ctx.needs_input_grad[:3]]
        found = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, None, None, mean, inverse, True, ctx.eps, needed
        )
        return (*(value if wanted else None for value, wanted in zip(found, needed, strict=True)), None)
