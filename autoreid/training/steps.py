"""The pieces of a step that searches and trainings share.

A step asks the device for nothing until its end: whether all gradients were finite and what the ranks agreed on is
then read at once. So the host waits for the device once a step, when all work of the step has been queued.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from autoreid.data.loaders import Batch
from autoreid.distributed import StopSignal, average_and_agree, gather_objects
from autoreid.errors import DataError, RunError
from autoreid.training.state import RunState


class Agreement(NamedTuple):
    """What all ranks know of a step, once it has been read.

    Attributes:
        flags: (2,) booleans: whether any rank has received a stop signal, and whether any could not read an image.
        broken: what was wrong with this rank's image, if one could not be read.
    """

    flags: Tensor
    broken: str | None


class Norms(NamedTuple):
    """Norms of gradients, not read yet.

    Attributes:
        names: of the parameters, in order.
        values: (parameters,).
    """

    names: Sequence[str]
    values: Tensor


def average_and_agree_on_step(
    gradients: Sequence[Tensor], batches: Iterable[Batch], stop: StopSignal
) -> tuple[list[Tensor], Agreement]:
    """The step's one all-reduce beside DDP's buckets: it averages gradients and carries what all ranks must know."""
    broken = next((batch.broken for batch in batches if batch.broken), None)
    averages, flags = average_and_agree(gradients, (stop.received is not None, broken is not None))
    return averages, Agreement(flags, broken)


def norms_of(names: Sequence[str], gradients: Sequence[Tensor]) -> Norms:
    """The norm of each gradient."""
    return Norms(names, torch.stack(torch._foreach_norm(list(gradients))))


def step_weights(state: RunState, gradient_clip: float | None, frozen: bool = False) -> Norms:
    """One step of the weights' optimiser with the gradients that are there, which DDP has averaged.

    Args:
        gradient_clip: largest norm of the gradient; None does not clip.
        frozen: whether only the head is moved.

    Returns:
        The norm of each weight's gradient, for `end_step`.
    """
    if frozen:
        # After DDP's backward pass, which expects every weight to have its gradient.
        for group in state.weight_optimizer.param_groups:
            if group["part"] == "backbone":
                for weight in group["params"]:
                    weight.grad = None
    named = [
        (name, weight.grad) for name, weight in state.network.named_parameters() if weight.grad is not None
    ]
    gradients = [gradient for _, gradient in named]
    norms = norms_of([name for name, _ in named], gradients)
    if gradient_clip is not None:
        total = torch.linalg.vector_norm(norms.values)
        torch._foreach_mul_(gradients, (gradient_clip / (total + 1e-6)).clamp(max=1.0))
    state.weight_optimizer.step()
    return norms


def end_step(step: int, agreement: Agreement, *norms: Norms) -> bool:
    """Reads what the step came to; all ranks come to the same.

    Args:
        step: steps done before this one.

    Returns:
        Whether any rank has received a stop signal.

    Raises:
        DataError: an image could not be read on any rank.
        RunError: the gradient of a parameter is not finite; names step and parameter. The weights are spoiled.
    """
    values = [norm.values for norm in norms]
    if agreement.flags.device == values[0].device:
        stopping, broken, *lengths = torch.cat([agreement.flags.to(values[0].dtype), *values]).tolist()
    else:  # a single process, whose flags are on the host
        stopping, broken = agreement.flags.tolist()
        lengths = torch.cat(values).tolist()
    if broken:
        raise DataError(next(message for message in gather_objects(agreement.broken) if message))
    names = [name for norm in norms for name in norm.names]
    for name, length in zip(names, lengths, strict=True):
        if not math.isfinite(length):
            raise RunError(
                f"step {step + 1}: the gradient of {name} is not finite; a lower learning rate may help"
            )
    return bool(stopping)
