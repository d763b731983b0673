"""The alphas' gradient of the bilevel problem: min over α of L_alphas(w*(α), α) (DARTS, arXiv 1806.09055).

L_weights is the loss on images that train the weights, L_alphas on those that only the alphas see. One step of SGD
stands for w*: w' = w - ξ·∇w L_weights(w, α), momentum and weight decay included.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from autoreid.data.loaders import Batch
from autoreid.distributed import average_and_agree, sum_over_ranks, world_size
from autoreid.layers.batch_norm import frozen_statistics
from autoreid.search.alphas import Alphas
from autoreid.search.relaxations import Relaxation
from autoreid.training.accumulation import Accumulation
from autoreid.training.objective import Objective, Score

Weights = dict[str, Tensor]


class Gradient(Protocol):
    """The gradient of the loss on one level's images, micro-batch after micro-batch."""

    def __call__(
        self, weights: Weights, inputs: Sequence[Tensor], create_graph: bool = False
    ) -> list[Tensor]:
        """At some weights of the supernet, in some of them or of the alphas' parameters."""


class Architect:
    """Computes this rank's share of the alphas' gradient; the loop averages it over the ranks.

    Running batch statistics are left as they are: they belong to the weights' images.

    Args:
        order: "first": ∇α L_alphas(w, α). "second": the unrolled gradient, its Hessian-vector product by central
            differences (DARTS, eq. 7 and 8). "exact": the unrolled gradient through autograd, which keeps the
            graphs of all the weights' micro-batches at once; the other two keep one.

    Attributes:
        captured: the supernet's pass for the first order as a CUDA graph, if there is one.
    """

    def __init__(
        self,
        supernet: nn.Module,
        alphas: Alphas,
        relaxation: Relaxation,
        objective: Objective,
        weight_optimizer: Optimizer,
        order: Literal["first", "second", "exact"],
        accumulation: Accumulation | None = None,
    ) -> None:
        self.supernet = supernet
        self.alphas = alphas
        self.relaxation = relaxation
        self.objective = objective
        self.weight_optimizer = weight_optimizer
        self.order = order
        self.accumulation = accumulation or Accumulation()
        self.captured: nn.Module | None = None

    def gradients(self, alpha_batch: Batch, weight_batch: Batch, step: int) -> list[Tensor]:
        """One gradient for each of the alphas' parameters, in their order, from this rank's batches.

        Args:
            step: steps done, for a relaxation with noise. Its draw for the alphas serves both batches: the gradient
                is that of one function, not of the difference between two draws.
        """

        def score(weights: Weights, batch: Batch) -> Score:
            mixing = self.relaxation.mixing(self.alphas, step, "alphas")
            if self.captured is not None:
                return self.objective(self.captured, batch, mixing)
            network = partial(functional_call, self.supernet, weights)
            return self.objective(lambda *inputs: network(inputs), batch, mixing)

        def gradient(
            batch: Batch, weights: Weights, inputs: Sequence[Tensor], create_graph: bool = False
        ) -> list[Tensor]:
            return self.accumulation.gradients(partial(score, weights), batch, inputs, create_graph)

        levels = partial(gradient, alpha_batch), partial(gradient, weight_batch)
        with frozen_statistics(self.supernet), self.objective.passes():
            if self.order == "first":
                return self._first_order(levels[0])
            # A compiled network cannot be differentiated twice.
            with torch.compiler.set_stance("force_eager"):
                return self._second_order(*levels) if self.order == "second" else self._exact(*levels)

    def _weights(self) -> Weights:
        return {name: weight for name, weight in self.supernet.named_parameters() if weight.requires_grad}

    def _first_order(self, of_alphas: Gradient) -> list[Tensor]:
        # Detached: none of them needs a gradient.
        weights = {name: weight.detach() for name, weight in self._weights().items()}
        return of_alphas(weights, list(self.alphas.parameters()))

    def _unroll(self, weights: Weights, gradients: list[Tensor]) -> Weights:
        """One step of SGD, as the optimiser would make it, on copies."""
        group = self.weight_optimizer.param_groups[0]
        values = list(weights.values())
        steps = list(torch._foreach_add(gradients, values, alpha=group["weight_decay"]))
        buffers = (self.weight_optimizer.state.get(weight, {}).get("momentum_buffer") for weight in values)
        # A weight that has never had a gradient has no momentum.
        momenta = {place: buffer for place, buffer in enumerate(buffers) if buffer is not None}
        if momenta:
            moving = [steps[place] for place in momenta]
            moved = torch._foreach_add(moving, list(momenta.values()), alpha=group["momentum"])
            for place, step in zip(momenta, moved, strict=True):
                steps[place] = step
        return dict(zip(weights, torch._foreach_add(values, steps, alpha=-group["lr"]), strict=True))

    def _at(self, unrolled: Weights, of_alphas: Gradient) -> tuple[list[Tensor], list[Tensor]]:
        """The gradient in the alphas as if the unrolled weights did not depend on them, and in those weights."""
        alphas = list(self.alphas.parameters())
        leaves = {name: weight.detach().requires_grad_() for name, weight in unrolled.items()}
        both = of_alphas(leaves, [*alphas, *leaves.values()])
        return both[: len(alphas)], both[len(alphas) :]

    def _second_order(self, of_alphas: Gradient, of_weights: Gradient) -> list[Tensor]:
        weights = self._weights()
        values, alphas = list(weights.values()), list(self.alphas.parameters())
        gradients, _ = average_and_agree(of_weights(weights, values))
        with torch.no_grad():
            unrolled = self._unroll(weights, gradients)
        direct, direction = self._at(unrolled, of_alphas)
        direction_mean, _ = average_and_agree(direction)
        # Half the distance of the two points, as DARTS chooses it.
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction_mean)))
        epsilon = 0.01 / length.clamp(min=1e-12)
        shifted = []
        with torch.no_grad():
            shift = torch._foreach_mul(direction_mean, epsilon)
        for sign in (1, -1):
            with torch.no_grad():
                nearby = dict(zip(weights, torch._foreach_add(values, shift, alpha=sign), strict=True))
            shifted.append(of_weights(nearby, alphas))
        rate = self.weight_optimizer.param_groups[0]["lr"]
        return [
            value - rate * (plus - minus) / (2 * epsilon)
            for value, plus, minus in zip(direct, *shifted, strict=True)
        ]

    def _exact(self, of_alphas: Gradient, of_weights: Gradient) -> list[Tensor]:
        weights = self._weights()
        gradients = of_weights(weights, list(weights.values()), create_graph=True)
        # One differentiable all-reduce of one flat tensor.
        flat = sum_over_ranks(torch.cat([gradient.reshape(-1) for gradient in gradients])) / world_size()
        pieces = flat.split([gradient.numel() for gradient in gradients])
        mean = [piece.view_as(gradient) for piece, gradient in zip(pieces, gradients, strict=True)]
        unrolled = self._unroll(weights, mean)
        direct, direction = self._at(unrolled, of_alphas)
        # Zeros for alphas that no weight's gradient depends on.
        through = torch.autograd.grad(
            list(unrolled.values()), list(self.alphas.parameters()), direction, materialize_grads=True
        )
        return [value + more for value, more in zip(direct, through, strict=True)]
