"""Activation checkpointing: what the backward pass needs is computed again instead of being kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from autoreid.layers.autocast import current_autocast


class _SecondPass:
    """Whether it runs; entered as often as a gradient is asked for."""

    runs = False

    def __enter__(self) -> None:
        self.runs = True

    def __exit__(self, *error: object) -> None:
        self.runs = False


def recompute(module: nn.Module, *inputs: Any) -> Any:
    """module(*inputs), of which the backward pass keeps the inputs only (Chen et al., arXiv 1604.06174).

    Exact: the second pass leaves running statistics alone, and has the weights of the first even where they were
    swapped for the length of a call, as the architect does. It may be differentiated twice.
    """
    names = [name for name, _ in module.named_parameters()]
    second = _SecondPass()

    def run(*tensors: Any) -> Any:
        state = dict(zip(names, tensors[len(inputs) :], strict=True))
        if second.runs:
            state |= {name: buffer.clone() for name, buffer in module.named_buffers()}
        return functional_call(module, state, tensors[: len(inputs)])

    return checkpoint(
        run,
        *inputs,
        *module.parameters(),
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), second),
    )


class Operation(ABC):
    """A function of tensors that knows its own gradient; without state and random numbers."""

    @abstractmethod
    def compute(self, *inputs: Tensor) -> Tensor:
        """The output, by operations that autograd knows."""

    def compute_and_keep(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output, and small tensors that the gradient needs beside the inputs."""
        return self.compute(*inputs), ()

    @abstractmethod
    def gradients(
        self, gradient: Tensor, kept: tuple[Tensor, ...], *inputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradient in each input that `requires_grad`, from the output's; autograd is off.

        Args:
            kept: what `compute_and_keep` gave beside the output.
        """


def keep_inputs(operation: Operation, *inputs: Tensor) -> Tensor:
    """operation.compute(*inputs), of which the backward pass keeps the inputs and what the operation wants to keep.

    It may be differentiated twice: a gradient that is to be differentiated itself is autograd's. Many times lighter
    than torch's checkpoint, whose hooks take longer than a small operation. A compiler chooses for itself what it
    keeps.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return operation.compute(*inputs)
    output: Tensor = _KeepInputs.apply(operation, *inputs)
    return output


class _KeepInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: Operation, *inputs: Tensor) -> Tensor:
        output, kept = operation.compute_and_keep(*inputs)
        ctx.operation, ctx.count = operation, len(inputs)
        ctx.autocast = current_autocast(inputs[0].device.type)
        ctx.save_for_backward(*inputs, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: they may be unpacked by computing them again
        inputs, kept = saved[: ctx.count], saved[ctx.count :]
        with ctx.autocast:
            if torch.is_grad_enabled():
                return None, *_differentiable(ctx.operation, gradients[0], inputs)
            return None, *ctx.operation.gradients(gradients[0], kept, *inputs)


def _differentiable(
    operation: Operation, gradient: Tensor, inputs: tuple[Tensor, ...]
) -> list[Tensor | None]:
    """Gradients that can be differentiated themselves, in the inputs that need one."""
    # Views of the inputs: one input may have been computed from another, which is not this operation's concern.
    inputs = tuple(x.view_as(x) for x in inputs)
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(operation.compute(*inputs), wanted, gradient, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]
