"""Batch normalisation whose statistics are those of the batch over all ranks, on any device.

torch's SyncBatchNorm refuses CPU tensors and cannot be differentiated twice. This one runs over gloo, so that a test
can compare N ranks with one process, and its gradient can be differentiated, as the exact second order needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoreid.distributed.collectives import world_size
from autoreid.layers.batch_norm_functions import (
    BatchNormOnCpu,
    count_over_ranks,
    normalise_over_ranks,
)

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Norm(NamedTuple):
    """One map to normalise.

    Attributes:
        x: (B, C) or (B, C, ...).
        running_mean: (C,), moved in training, used otherwise; None to leave it alone in training.
        running_var: like `running_mean`.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
    """

    x: Tensor
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


def normalise_together(
    norms: Sequence[Norm], training: bool, momentum: float, eps: float, shared: bool
) -> list[Tensor]:
    """`torch.nn.functional.batch_norm` of several maps, which may differ in shape.

    Args:
        shared: whether statistics in training are those of the batch over all ranks; every rank has the same B. All
            maps take one collective forward and one backward between them.

    Returns:
        The output for each map, in its dtype.
    """
    if norms and training and shared and world_size() > 1:
        return _normalise_over_ranks(norms, momentum, eps)
    return [_normalise_alone(norm, training, momentum, eps) for norm in norms]


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
    """`normalise_together` of one map."""
    norm = Norm(x, running_mean, running_var, weight, bias)
    return normalise_together([norm], training, momentum, eps, shared)[0]


def _normalise_over_ranks(norms: Sequence[Norm], momentum: float, eps: float) -> list[Tensor]:
    xs, _, _, weights, biases = zip(*norms, strict=True)
    for x in xs:
        if x.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(x.shape)}")
    outputs, means, variances = normalise_over_ranks(xs, weights, biases, eps)
    counts = [count_over_ranks(x) for x in xs]
    _move_running(norms, means, variances, counts, momentum)
    return outputs


def _move_running(
    norms: Sequence[Norm],
    means: list[Tensor],
    variances: list[Tensor],
    counts: list[int],
    momentum: float,
) -> None:
    """Moves those running statistics that there are towards the batch's."""
    if all(norm.running_mean is None for norm in norms):
        return
    unbiased = torch._foreach_mul(variances, [count / (count - 1) for count in counts])
    running = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
    pairs = [pair for pair in zip(running, (*means, *unbiased), strict=True) if pair[0] is not None]
    old, new = zip(*pairs, strict=True)
    torch._foreach_lerp_(old, new, momentum)


def _normalise_alone(norm: Norm, training: bool, momentum: float, eps: float) -> Tensor:
    x, running_mean, running_var, weight, bias = norm
    if training and _is_slow(x):
        return _normalise_on_cpu(x, running_mean, running_var, weight, bias, momentum, eps)
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


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
    output, mean, variance = BatchNormOnCpu.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    result: Tensor = output
    return result


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
        # With a fixed momentum nothing reads num_batches_tracked. It stays in the state, and is not counted up: that
        # would be a kernel for each norm.
        keeps = self.track_running_stats or not self.training
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
def running_statistics(network: nn.Module) -> Iterator[None]:
    """Normalises with running statistics, as in evaluation mode, and leaves them as they are.

    The network itself stays in training mode, so that it returns logits as well; all modules inside it are in
    evaluation mode.
    """
    inside = [module for module in network.modules() if module is not network and module.training]
    for module in inside:
        module.training = False
    try:
        yield
    finally:
        for module in inside:
            module.training = True


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
