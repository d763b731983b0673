"""The gradient over a batch, micro-batch after micro-batch: of whatever loss, in whatever it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoreid.data.loaders import Batch
from autoreid.distributed import averaging
from autoreid.training.objective import Score


@dataclass(frozen=True)
class Accumulation:
    """How the gradient over a rank's share of a batch is computed: as the mean of its micro-batches' gradients.

    Each forward pass is followed by its backward pass, so that one micro-batch's graph is alive at a time. The
    identities of the share are dealt in turn, the g-th to micro-batch g mod `count`. Where every rank has a multiple
    of `count` identities, the ranks' j-th micro-batches together are thus what one process would have for its j-th.

    Attributes:
        count: micro-batches.
        images_per_identity: K; images of an identity stand together in a batch.
    """

    count: int = 1
    images_per_identity: int = 1

    def deal(self, batch: Batch) -> Iterator[Batch]:
        """The micro-batches, made one at a time."""
        if self.count == 1:
            yield batch
            return
        images, labels = (whole.split(self.images_per_identity) for whole in (batch.images, batch.labels))
        for number in range(self.count):
            mine = slice(number, None, self.count)
            yield batch._replace(images=torch.cat(images[mine]), labels=torch.cat(labels[mine]))

    def backward(self, network: nn.Module, score: Callable[[Batch], Score], batch: Batch) -> Tensor:
        """Adds the gradient of the mean loss to the `grad` of all that the scores come from.

        Args:
            network: that scores, under DDP where there are ranks; its gradients are averaged over them once.
            score: of a micro-batch.

        Returns:
            This rank's METRICS, (4,), their means over the micro-batches.
        """
        return torch.stack(list(self._each(score, batch, Tensor.backward, network))).mean(0)

    def gradients(
        self,
        score: Callable[[Batch], Score],
        batch: Batch,
        inputs: Sequence[Tensor],
        create_graph: bool = False,
    ) -> list[Tensor]:
        """The gradient of this rank's mean loss in each of some inputs.

        Args:
            create_graph: whether it can be differentiated itself; all micro-batches' graphs then stay alive with it.
        """
        total: list[Tensor] = []

        def add(loss: Tensor) -> None:
            found = torch.autograd.grad(loss, inputs, create_graph=create_graph)
            total[:] = [so_far + more for so_far, more in zip(total, found, strict=True)] if total else found

        for _ in self._each(score, batch, add):
            pass
        return total

    def _each(
        self,
        score: Callable[[Batch], Score],
        batch: Batch,
        differentiate: Callable[[Tensor], None],
        network: nn.Module | None = None,
    ) -> Iterator[Tensor]:
        """Differentiates each micro-batch's share of the mean loss; gives its METRICS."""
        for number, micro_batch in enumerate(self.deal(batch), start=1):
            with averaging(network, now=number == self.count):
                metrics = _differentiate(score(micro_batch), self.count, differentiate)
            yield metrics


def _differentiate(score: Score, count: int, differentiate: Callable[[Tensor], None]) -> Tensor:
    # A function of its own: once it is left, nothing holds the graph.
    differentiate(score.losses.total / count)
    return torch.stack([*(term.detach() for term in score.losses), score.accuracy])
