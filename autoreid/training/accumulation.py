"""Gradient accumulation over micro-batches: the gradient of a large batch with the memory of a small one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoreid.data.loaders import Batch


@dataclass(frozen=True)
class Accumulation:
    """Splits a rank's share of a batch into micro-batches. The gradient of the batch is the mean of theirs.

    The loops over micro-batches run the backward pass of one before the forward pass of the next, so that only one
    graph is in memory at a time. The g-th identity of the share goes to micro-batch g mod `count`. If every rank has a
    multiple of `count` identities, the j-th micro-batches of all ranks together are the j-th micro-batch of a single
    process.

    Attributes:
        count: number of micro-batches.
        images_per_identity: number of images of each identity, which are consecutive in a batch.
    """

    count: int = 1
    images_per_identity: int = 1

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """Yield the micro-batches, creating each only when it is requested."""
        if self.count == 1:
            yield batch
            return
        images, labels = (whole.split(self.images_per_identity) for whole in (batch.images, batch.labels))
        for number in range(self.count):
            chosen = slice(number, None, self.count)
            yield batch._replace(images=torch.cat(images[chosen]), labels=torch.cat(labels[chosen]))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the rows (B, ...) of a batch in its order, from the rows of each of its micro-batches."""
        if self.count == 1:
            return parts[0]
        groups = [part.unflatten(0, (-1, self.images_per_identity)) for part in parts]
        return torch.stack(groups, dim=1).flatten(0, 2)
