"""Batch normalisation that uses the statistics of the batch over all ranks, on any device.

torch's SyncBatchNorm refuses CPU tensors and cannot be differentiated twice. This implementation also runs over gloo,
so that a test can compare N ranks with one process. Its gradient is differentiable, as the exact second order needs.
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
from autoreid.layers import cpu
from autoreid.layers.batch_norm_functions import count_over_ranks, normalise_over_ranks

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Norm(NamedTuple):
    """The arguments of batch normalisation for one map.

    Attributes:
        x: (B, C) or (B, C, ...).
        running_mean: (C,), used in evaluation and updated in training; None in training if none is to be updated.
        running_var: (C,) or None, like `running_mean`.
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
    """Compute `torch.nn.functional.batch_norm` of several maps, which may differ in shape.

    Args:
        norms: the maps, and each map's statistics and parameters.
        training: whether to use batch statistics instead of the running ones.
        momentum: as in `batch_norm`, for all maps.
        eps: as in `batch_norm`, for all maps.
        shared: whether batch statistics are those of all ranks, which must have equal batch sizes. All maps together
            take one collective in the forward and one in the backward pass.

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
    """Compute `normalise_together` of one map."""
    norm = Norm(x, running_mean, running_var, weight, bias)
    return normalise_together([norm], training, momentum, eps, shared)[0]


def _normalise_over_ranks(norms: Sequence[Norm], momentum: float, eps: float) -> list[Tensor]:
    xs, _, _, weights, biases = zip(*norms, strict=True)
    for x in xs:
        if x.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(x.shape)}")
    outputs, means, variances = normalise_over_ranks(xs, weights, biases, eps)
    counts = [count_over_ranks(x) for x in xs]
    _update_running_statistics(norms, means, variances, counts, momentum)
    return outputs


def _update_running_statistics(
    norms: Sequence[Norm],
    means: list[Tensor],
    variances: list[Tensor],
    counts: list[int],
    momentum: float,
) -> None:
    """Update the running statistics of the norms that have some, in one call for all."""
    if all(norm.running_mean is None for norm in norms):
        return
    unbiased = torch._foreach_mul(variances, [count / (count - 1) for count in counts])
    running = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
    pairs = [pair for pair in zip(running, (*means, *unbiased), strict=True) if pair[0] is not None]
    old, new = zip(*pairs, strict=True)
    torch._foreach_lerp_(old, new, momentum)


def _normalise_alone(norm: Norm, training: bool, momentum: float, eps: float) -> Tensor:
    if training and cpu.uses_cpu_form(norm.x) and cpu.supports_batch_norm(norm.x):
        return cpu.batch_norm(*norm, momentum, eps)
    return F.batch_norm(*norm, training, momentum, eps)


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation of (B, C) or (B, C, ...) over all ranks, which must have equal batch sizes.

    Attributes:
        shares_statistics: whether the statistics are those of all ranks; subclasses may begin without.
    """

    shares_statistics = True

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise with the batch statistics of all ranks in training, with running statistics in evaluation.

        Raises:
            ValueError: the input has fewer than two dimensions, or the momentum is None.
        """
        self._check_input_dim(input)
        if self.momentum is None:
            raise ValueError("momentum=None (a cumulative average) is not supported; set a number")
        # num_batches_tracked is not incremented: only a cumulative average reads it, and it would cost a kernel per
        # norm. It stays in the state for compatibility.
        use_running = self.track_running_stats or not self.training
        return normalise(
            input,
            self.running_mean if use_running else None,
            self.running_var if use_running else None,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
            self.shares_statistics,
        )


def share_batch_statistics(module: AnyModule) -> AnyModule:
    """Replace every batch normalisation inside a module by a SharedBatchNorm with the same state; return the module.

    This is torch's `SyncBatchNorm.convert_sync_batchnorm`, but in place, and also for CPUs. A submodule that has an
    attribute `shares_statistics` is not replaced; the attribute is set to True, and its submodules are converted.
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
    """Do not update running statistics inside this context; norms in training still use batch statistics.

    For forward passes that only serve to compute a gradient, such as the architect's.
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
