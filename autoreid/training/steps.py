"""The pieces of a step that searches and trainings share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from autoreid.data.loaders import Batch
from autoreid.distributed import StopSignal, average_and_agree, gather_objects
from autoreid.errors import DataError, RunError
from autoreid.training.state import RunState


def average_and_agree_on_step(
    gradients: Sequence[Tensor], batches: Iterable[Batch], stop: StopSignal
) -> tuple[list[Tensor], bool]:
    """The step's one all-reduce beside DDP's buckets: it averages gradients and carries what all ranks must know.

    Returns:
        The averages, and whether any rank has received a stop signal.

    Raises:
        DataError: on every rank, if an image could not be read on any.
    """
    broken = next((batch.broken for batch in batches if batch.broken), None)
    flags = (stop.received is not None, broken is not None)
    averages, (stopping, any_broken) = average_and_agree(gradients, flags)
    if any_broken:
        raise DataError(next(message for message in gather_objects(broken) if message))
    return averages, stopping


def step_weights(state: RunState, gradient_clip: float | None, frozen: bool = False) -> None:
    """One step of the weights' optimiser with the gradients that are there.

    Args:
        gradient_clip: largest norm of the gradient; None does not clip.
        frozen: whether only the head is moved.

    Raises:
        RunError: on every rank, if the averaged gradient is not finite; names step and parameter.
    """
    if frozen:
        # After DDP's backward pass, which expects every weight to have its gradient.
        for group in state.weight_optimizer.param_groups:
            if group["part"] == "backbone":
                for weight in group["params"]:
                    weight.grad = None
    # DDP has averaged the gradient: every rank sees the same norm and decides alike.
    weights = [weight for weight in state.network.parameters() if weight.grad is not None]
    norm = nn.utils.clip_grad_norm_(weights, torch.inf if gradient_clip is None else gradient_clip)
    if not torch.isfinite(norm):
        for name, weight in state.network.named_parameters():
            if weight.grad is not None:
                require_finite(name, weight.grad, state.step)
    state.weight_optimizer.step()


def require_finite(name: str, gradient: Tensor, step: int) -> None:
    """Raises RunError, naming the step after `step` and the parameter, unless all of its gradient is finite."""
    if not torch.isfinite(gradient).all():
        raise RunError(
            f"step {step + 1}: the gradient of {name} is not finite; a lower learning rate may help"
        )
