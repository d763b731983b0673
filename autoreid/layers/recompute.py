"""Activation checkpointing: the backward pass recomputes intermediate values instead of saving them."""

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
    """A context that torch's checkpoint enters for each recomputation.

    Attributes:
        runs: whether a recomputation is running.
    """

    runs = False

    def __enter__(self) -> None:
        self.runs = True

    def __exit__(self, *error: object) -> None:
        self.runs = False


def recompute(module: nn.Module, *inputs: Any) -> Any:
    """Return `module(*inputs)`, saving only the inputs for the backward pass (Chen et al., arXiv 1604.06174).

    The gradients are exact. The second forward pass does not update running statistics. It uses the weights of the
    first one, even if these were passed by `functional_call`, as the architect does. The result can be differentiated
    twice.
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


class RecomputedFunction(ABC):
    """A function of tensors that computes its gradient from its inputs. It has no state and uses no random numbers."""

    @abstractmethod
    def compute(self, *inputs: Tensor) -> Tensor:
        """Return the output, computed by operations that autograd can differentiate."""

    def compute_and_keep(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output, and small tensors to save for `gradients` in addition to the inputs."""
        return self.compute(*inputs), ()

    @abstractmethod
    def gradients(
        self, gradient: Tensor, kept: tuple[Tensor, ...], *inputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradient of each input, or None if the input does not require one. Called without autograd.

        Args:
            gradient: of the output.
            kept: the tensors that `compute_and_keep` returned after the output.
        """


def keep_inputs(function: RecomputedFunction, *inputs: Tensor) -> Tensor:
    """Return `function.compute(*inputs)`, saving for the backward pass only the inputs and the function's kept tensors.

    The result can be differentiated twice: autograd computes a gradient that is itself to be differentiated. This
    has far less overhead than torch's checkpoint, whose hooks take longer than a small function. Under
    `torch.compile` the compiler chooses what to save.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function.compute(*inputs)
    output: Tensor = _KeepInputs.apply(function, *inputs)
    return output


class _KeepInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: RecomputedFunction, *inputs: Tensor) -> Tensor:
        output, kept = function.compute_and_keep(*inputs)
        ctx.function, ctx.count = function, len(inputs)
        ctx.autocast = current_autocast(inputs[0].device.type)
        ctx.save_for_backward(*inputs, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: unpacking may recompute them
        inputs, kept = saved[: ctx.count], saved[ctx.count :]
        with ctx.autocast:
            if torch.is_grad_enabled():
                return None, *_differentiable(ctx.function, gradients[0], inputs)
            return None, *ctx.function.gradients(gradients[0], kept, *inputs)


def _differentiable(
    function: RecomputedFunction, gradient: Tensor, inputs: tuple[Tensor, ...]
) -> list[Tensor | None]:
    """Return differentiable gradients of the inputs, None for those that need none."""
    # Views, because one input may have been computed from another, and its gradient must not include that path.
    inputs = tuple(x.view_as(x) for x in inputs)
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(function.compute(*inputs), wanted, gradient, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]
