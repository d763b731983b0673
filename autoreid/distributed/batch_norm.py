"""Batch normalisation whose statistics are those of the batch over all ranks, on any device.

torch's SyncBatchNorm refuses CPU tensors and cannot be differentiated twice; this one is made of
differentiable collectives, so the rule that N ranks compute what one process computes can be tested over gloo
and holds for the exact second-order architect too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoreid.distributed.collectives import gather, world_size

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def normalise(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    shared: bool,
) -> Tensor:
    """`torch.nn.functional.batch_norm` of (B, C) or (B, C, ...), over the batch of all ranks if it is shared.

    Args:
        running_mean: moved in training, used otherwise; None to leave them alone in training.
        shared: whether statistics are those of all ranks; every rank has the same B.
    """
    if not training or not shared or world_size() == 1:
        if training and _is_slow(x):
            return _normalise_on_cpu(x, running_mean, running_var, weight, bias, momentum, eps)
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if x.dim() < 2:
        raise ValueError(f"expected (B, C, ...), got {tuple(x.shape)}")
    dtype = x.dtype
    x = x.float() if dtype in (torch.bfloat16, torch.float16) else x
    others = [dim for dim in range(x.dim()) if dim != 1]
    variance, mean = torch.var_mean(x, dim=others, correction=0)
    # One collective for both; the spread of the ranks' means is exact where E[x²] - E[x]² would cancel.
    everyone = gather(torch.stack([mean, variance])[None])
    mean = everyone[:, 0].mean(0)
    variance = everyone[:, 1].mean(0) + everyone[:, 0].var(0, correction=0)
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1] * world_size()
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            running_var.mul_(1 - momentum).add_(variance * (count / max(count - 1, 1)), alpha=momentum)
    shape = [1, -1] + [1] * (x.dim() - 2)
    scale = torch.rsqrt(variance + eps)
    output = (x - mean.view(shape)) * (scale if weight is None else scale * weight).view(shape)
    if bias is not None:
        output = output + bias.view(shape)
    return output.to(dtype)


def _is_slow(x: Tensor) -> bool:
    """Whether torch would walk through the maps number by number: on CPUs, channels apart, uncompiled."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.is_contiguous():
        return False
    return x.dtype in (torch.float32, torch.float64) and x.dim() > 2 and x[:, 0].numel() > 1


def _normalise_on_cpu(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    output, mean, variance = _BatchNormOnCpu.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    result: Tensor = output
    return result


class _BatchNormOnCpu(torch.autograd.Function):
    """Batch normalisation by vectorised passes over rows: mean, centring, their norm. Backward is torch's own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, ...) -> the same, and the mean and the biased variance of each channel."""
        count = x.numel() // x.shape[1]
        # Not a view of what is computed here: who adds to it in place would have it copied in the backward pass.
        output = torch.empty_like(x)
        rows, centred = x.flatten(2), output.flatten(2)
        mean = rows.sum(2).sum(0) / count
        torch.sub(rows, mean[:, None], out=centred)
        variance = torch.linalg.vector_norm(centred, dim=2).square().sum(0) / count
        scale = torch.rsqrt(variance + eps)
        centred.mul_((scale if weight is None else scale * weight)[:, None])
        if bias is not None:
            centred.add_(bias[:, None])
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Differentiable itself, as torch's function for it is."""
        x, weight, mean, scale = ctx.saved_tensors
        needed = [*ctx.needs_input_grad[:3]]
        found = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, None, None, mean, scale, True, ctx.eps, needed
        )
        return (*(value if wanted else None for value, wanted in zip(found, needed, strict=True)), None)


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation over (B, C) or (B, C, ...) of all ranks; every rank has the same B."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalises with all ranks' statistics in training, with the running ones in evaluation."""
        self._check_input_dim(input)
        if self.momentum is None:
            raise ValueError("running statistics with a fixed momentum are what is supported")
        moves = self.training and self.track_running_stats
        if moves and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        keeps = moves or not self.training
        return normalise(
            input,
            self.running_mean if keeps else None,
            self.running_var if keeps else None,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
            shared=True,
        )


def share_batch_statistics(module: AnyModule) -> AnyModule:
    """Replaces every batch normalisation inside a module by a SharedBatchNorm with the same state.

    Like torch's `SyncBatchNorm.convert_sync_batchnorm`, but in place, and for CPUs as well. A module with an
    attribute `shares_statistics` is told instead, and what is inside it treated as everything else.
    """
    for name, child in module.named_children():
        if hasattr(child, "shares_statistics"):
            setattr(child, "shares_statistics", True)  # noqa: B010
            share_batch_statistics(child)
        elif isinstance(child, _BatchNorm) and not isinstance(child, SharedBatchNorm):
            shared = SharedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            for key, value in [*child._parameters.items(), *child._buffers.items()]:
                setattr(shared, key, value)
            shared.train(child.training)
            setattr(module, name, shared)
        else:
            share_batch_statistics(child)
    return module


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Normalises with batch statistics as in training, but leaves the running ones as they are.

    For forward passes that only ask for a gradient, such as the architect's.
    """
    norms = [
        child for child in module.modules() if isinstance(child, _BatchNorm) and child.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
