"""Activation checkpointing: a cell's forward pass is done again in the backward pass instead of being kept."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

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
