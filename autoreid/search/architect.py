"""The gradient of the bilevel problem in the alphas: min over α of L_alphas(w*(α), α) (DARTS, arXiv 1806.09055).

L_weights is the loss on images that train the weights, L_alphas the loss on images that only the alphas see. One step
of SGD approximates w*: w' = w - ξ·∇w L_weights(w, α), including momentum and weight decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from autoreid.data.loaders import Batch
from autoreid.distributed import average_and_agree, sum_over_ranks, world_size
from autoreid.layers.batch_norm import frozen_statistics, running_statistics
from autoreid.losses import LossValues, RetrievalLoss
from autoreid.search.alphas import Alphas
from autoreid.search.relaxations import Relaxation
from autoreid.training.accumulation import Accumulation
from autoreid.training.precision import PassPrecision

Weights = dict[str, Tensor]


class BatchGradients(NamedTuple):
    """What the passes on a batch compute.

    Attributes:
        values: a gradient for each input that was asked for; the mean over the micro-batches.
        embeddings: (B, D), detached, in the order of the batch.
    """

    values: list[Tensor]
    embeddings: Tensor


class Architect:
    """Computes this rank's share of the gradient in the alphas; the caller averages it over the ranks.

    Running statistics do not change: they are estimated from the weights' images.

    Args:
        alpha_loss: L_alphas.
        weight_loss: L_weights.
        order: "first": ∇α L_alphas(w, α). "second": the gradient through the unrolled step, with central differences
            for its Hessian-vector product (DARTS, eq. 7 and 8). "exact": the same gradient through autograd, which
            keeps the graphs of all micro-batches of the weights' batch; the other two keep one.

    Attributes:
        by_running_statistics: whether L_alphas is computed with running statistics instead of the batch's.
        captured: the supernet as a CUDA graph for order "first", if there is one.
    """

    def __init__(
        self,
        supernet: nn.Module,
        alphas: Alphas,
        relaxation: Relaxation,
        alpha_loss: RetrievalLoss,
        weight_loss: RetrievalLoss,
        weight_optimizer: Optimizer,
        order: Literal["first", "second", "exact"],
        precision: PassPrecision,
        accumulation: Accumulation,
    ) -> None:
        self.supernet = supernet
        self.alphas = alphas
        self.relaxation = relaxation
        self.alpha_loss = alpha_loss
        self.weight_loss = weight_loss
        self.weight_optimizer = weight_optimizer
        self.order = order
        self.precision = precision
        self.accumulation = accumulation
        self.by_running_statistics = False
        self.captured: nn.Module | None = None

    def gradients(self, alpha_batch: Batch, weight_batch: Batch, step: int) -> BatchGradients:
        """Compute a gradient for each parameter of the alphas, from this rank's batches.

        No state changes. The embeddings are those of the alphas' batch for which L_alphas was computed.

        Args:
            step: number of completed steps, for a relaxation with noise. Both batches use the noise of the alphas'
                level: the result is the gradient of one function, not a difference between two samples.
        """
        with frozen_statistics(self.supernet), self.precision.backends():
            if self.order == "first":
                return self._first_order(alpha_batch, step)
            # A compiled network cannot be differentiated twice.
            with torch.compiler.set_stance("force_eager"):
                if self.order == "second":
                    return self._second_order(alpha_batch, weight_batch, step)
                return self._exact(alpha_batch, weight_batch, step)

    def _loss(self, loss: RetrievalLoss, weights: Weights, batch: Batch, step: int) -> LossValues:
        """One of the losses on a micro-batch, with the given weights in the supernet."""
        inputs = batch.images, *self.relaxation.inputs(self.alphas, step, "alphas", alphas_learn=True)
        with self.precision.autocast():
            if self.captured is not None:
                outputs = self.captured(*inputs)
            else:
                outputs = functional_call(self.supernet, weights, inputs)
        values: LossValues = loss(outputs, batch.labels)
        return values

    def _gradients(
        self,
        loss: RetrievalLoss,
        weights: Weights,
        batch: Batch,
        inputs: Sequence[Tensor],
        step: int,
        create_graph: bool = False,
    ) -> BatchGradients:
        """The gradient of one of the losses in `inputs`, weights or alphas."""
        total: list[Tensor] = []
        embeddings = []
        for micro_batch in self.accumulation.micro_batches(batch):
            values = self._loss(loss, weights, micro_batch, step)
            embeddings.append(values.embeddings)
            value = values.total / self.accumulation.count
            # A sample may leave out some inputs, or all of them: their gradients are zero.
            found: Sequence[Tensor] = (
                torch.autograd.grad(value, inputs, create_graph=create_graph, materialize_grads=True)
                if value.requires_grad
                else [torch.zeros_like(x) for x in inputs]
            )
            total = [a + b for a, b in zip(total, found, strict=True)] if total else list(found)
            del value, values  # and with them the graph, before the next one is built
        return BatchGradients(total, self.accumulation.join(embeddings))

    def alpha_statistics(self) -> AbstractContextManager[None]:
        """Returns a context for passes that compute L_alphas, which sets the statistics of its norms."""
        return running_statistics(self.supernet) if self.by_running_statistics else nullcontext()

    def _weights(self) -> Weights:
        return {name: weight for name, weight in self.supernet.named_parameters() if weight.requires_grad}

    def _first_order(self, alpha_batch: Batch, step: int) -> BatchGradients:
        # Detached, because none of them needs a gradient.
        weights = {name: weight.detach() for name, weight in self._weights().items()}
        with self.alpha_statistics():
            return self._gradients(
                self.alpha_loss, weights, alpha_batch, list(self.alphas.parameters()), step
            )

    def _unroll(self, weights: Weights, gradients: list[Tensor]) -> Weights:
        """One step of SGD with the optimiser's settings, on copies of the weights."""
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

    def _at(self, unrolled: Weights, alpha_batch: Batch, step: int) -> tuple[BatchGradients, list[Tensor]]:
        """The gradients of L_alphas at the unrolled weights: in the alphas with w' held fixed, and in w'."""
        alphas = list(self.alphas.parameters())
        leaves = {name: weight.detach().requires_grad_() for name, weight in unrolled.items()}
        with self.alpha_statistics():
            both = self._gradients(self.alpha_loss, leaves, alpha_batch, [*alphas, *leaves.values()], step)
        return both._replace(values=both.values[: len(alphas)]), both.values[len(alphas) :]

    def _second_order(self, alpha_batch: Batch, weight_batch: Batch, step: int) -> BatchGradients:
        weights = self._weights()
        values, alphas = list(weights.values()), list(self.alphas.parameters())
        gradients, _ = average_and_agree(
            self._gradients(self.weight_loss, weights, weight_batch, values, step).values
        )
        with torch.no_grad():
            unrolled = self._unroll(weights, gradients)
        direct, direction = self._at(unrolled, alpha_batch, step)
        direction_mean, _ = average_and_agree(direction)
        # Half the distance between the two points, as DARTS chooses it.
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction_mean)))
        epsilon = 0.01 / length.clamp(min=1e-12)
        shifted = []
        with torch.no_grad():
            shift = torch._foreach_mul(direction_mean, epsilon)
        for sign in (1, -1):
            with torch.no_grad():
                nearby = dict(zip(weights, torch._foreach_add(values, shift, alpha=sign), strict=True))
            shifted.append(self._gradients(self.weight_loss, nearby, weight_batch, alphas, step).values)
        rate = self.weight_optimizer.param_groups[0]["lr"]
        gradients = [
            value - rate * (plus - minus) / (2 * epsilon)
            for value, plus, minus in zip(direct.values, *shifted, strict=True)
        ]
        return direct._replace(values=gradients)

    def _exact(self, alpha_batch: Batch, weight_batch: Batch, step: int) -> BatchGradients:
        weights = self._weights()
        values = list(weights.values())
        gradients, _ = self._gradients(
            self.weight_loss, weights, weight_batch, values, step, create_graph=True
        )
        # One differentiable all-reduce of one flat tensor.
        flat = sum_over_ranks(torch.cat([gradient.reshape(-1) for gradient in gradients])) / world_size()
        pieces = flat.split([gradient.numel() for gradient in gradients])
        mean = [piece.view_as(gradient) for piece, gradient in zip(pieces, gradients, strict=True)]
        unrolled = self._unroll(weights, mean)
        direct, direction = self._at(unrolled, alpha_batch, step)
        # Zeros for alphas on which no weight's gradient depends.
        through = torch.autograd.grad(
            list(unrolled.values()), list(self.alphas.parameters()), direction, materialize_grads=True
        )
        return direct._replace(
            values=[value + more for value, more in zip(direct.values, through, strict=True)]
        )
