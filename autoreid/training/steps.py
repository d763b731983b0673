"""The parts of a step that searches and trainings share.

A step reads nothing from the device until its end. The norms of the gradients and what the ranks agreed on are then
read together, so that the host waits for the device once per step, after all work of the step has been queued.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from autoreid.data.loaders import Batch
from autoreid.distributed import StopSignal, average_and_agree, gather_objects
from autoreid.errors import DataError, DivergedError
from autoreid.training.state import RunState


class Agreement(NamedTuple):
    """What all ranks agree on in a step, not read from the device yet.

    Attributes:
        flags: (2,) booleans: whether any rank has received a stop signal, and whether any could not read an image.
        broken: the error message of the image that this rank could not read, or None.
    """

    flags: Tensor
    broken: str | None


class Norms(NamedTuple):
    """Norms of gradients, not read from the device yet.

    Attributes:
        names: names of the parameters.
        values: (parameters,), the norms in the same order.
    """

    names: Sequence[str]
    values: Tensor


def average_and_agree_on_step(
    gradients: Sequence[Tensor], batches: Iterable[Batch], stop: StopSignal
) -> tuple[list[Tensor], Agreement]:
    """Average gradients over the ranks and combine the ranks' flags, in one all-reduce.

    Apart from DDP's buckets, this is the only all-reduce of gradients in a step.

    Args:
        gradients: this rank's gradients. May be empty.
        batches: all batches of the step.
        stop: this rank's stop signal.

    Returns:
        The averaged gradients, and the agreement for `end_step`.
    """
    broken = next((batch.broken for batch in batches if batch.broken), None)
    averages, flags = average_and_agree(gradients, (stop.received is not None, broken is not None))
    return averages, Agreement(flags, broken)


def norms_of(names: Sequence[str], gradients: Sequence[Tensor]) -> Norms:
    """Return the norm of each gradient."""
    return Norms(names, torch.stack(torch._foreach_norm(list(gradients))))


def step_weights(state: RunState, gradient_clip: float | None, frozen: bool = False) -> Norms:
    """Perform a step of the weights' optimiser with averaged gradients.

    Args:
        gradient_clip: maximum norm of the gradient of all weights together; None disables clipping.
        frozen: whether to update the head only.

    Returns:
        The norm of each weight's gradient, for `end_step`.
    """
    if frozen:
        # Only now, because DDP expects a gradient for every weight in the backward pass.
        for group in state.weight_optimizer.param_groups:
            if group["part"] == "backbone":
                for weight in group["params"]:
                    weight.grad = None
    weights = (*state.network.named_parameters(), *state.loss.named_parameters("loss"))
    named = [(name, weight.grad) for name, weight in weights if weight.grad is not None]
    gradients = [gradient for _, gradient in named]
    norms = norms_of([name for name, _ in named], gradients)
    if gradient_clip is not None:
        total = torch.linalg.vector_norm(norms.values)
        torch._foreach_mul_(gradients, (gradient_clip / (total + 1e-6)).clamp(max=1.0))
    state.weight_optimizer.step()
    return norms


def end_step(step: int, agreement: Agreement, *norms: Norms) -> bool:
    """Check the gradients of a step and read what the ranks agreed on. The result is the same on all ranks.

    Args:
        step: number of steps completed before this one.

    Returns:
        Whether any rank has received a stop signal.

    Raises:
        DataError: a rank could not read an image.
        DivergedError: a gradient is not finite; the message names the step and the parameter. The step has already
            updated the weights, so they must not be saved.
    """
    values = [norm.values for norm in norms]
    if agreement.flags.device == values[0].device:
        stopping, broken, *lengths = torch.cat([agreement.flags.to(values[0].dtype), *values]).tolist()
    else:  # a single process keeps its flags on the host
        stopping, broken = agreement.flags.tolist()
        lengths = torch.cat(values).tolist()
    if broken:
        raise DataError(next(message for message in gather_objects(agreement.broken) if message))
    names = [name for norm in norms for name in norm.names]
    for name, length in zip(names, lengths, strict=True):
        if not math.isfinite(length):
            raise DivergedError(
                f"step {step + 1}: the gradient of {name} is not finite; a lower learning rate may help"
            )
    return bool(stopping)
