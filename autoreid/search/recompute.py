"""Activation checkpointing: what the backward pass needs is computed again instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


class _SecondPass:
    """Whether it runs; entered as often as a gradient is asked for."""

    runs = False

    def __enter__(self) -> None:
        self.runs = True

    def __exit__(self, *error: object) -> None:
        self.runs = False


def recompute(module: nn.Module, *inputs: Tensor) -> Any:
    """module(*inputs), of which the backward pass keeps the inputs only (Chen et al., arXiv 1604.06174).

    Exact: the second pass leaves running statistics alone, and has the weights of the first even where they were
    swapped for the length of a call, as the architect does. It may be differentiated twice.
    """
    names = [name for name, _ in module.named_parameters()]
    second = _SecondPass()

    def run(*tensors: Tensor) -> Any:
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


def keep_inputs(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """compute(*inputs), of which the backward pass keeps the inputs only; exact, and may be differentiated twice.

    For single operations: many times lighter than torch's checkpoint, whose hooks take longer than a small one. A
    compiler is left to choose for itself what it keeps.

    Args:
        compute: without state and random numbers, and of nothing else that needs a gradient.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return compute(*inputs)
    output: Tensor = _KeepInputs.apply(compute, *inputs)
    return output


class _KeepInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.compute = compute
        device = inputs[0].device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.save_for_backward(*inputs)
        return compute(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()  # whether the gradient is to be differentiated itself
        inputs = [x if again else x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            output = ctx.compute(*inputs)
        wanted = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, gradients, create_graph=again))
        return None, *(next(found) if x.requires_grad else None for x in inputs)
