"""Batches of P identities with K images each, shared out among ranks without overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from autoreid.errors import ConfigError

IntArray = npt.NDArray[np.int64]


class IdentityBalancedSampler(Sampler[list[int]]):
    """A batch sampler: yields this rank's image indices of each batch, identity after identity.

    A global batch holds P distinct identities with K images each; rank r takes the r-th of `world_size`
    equal runs of identities. The sequence of global batches depends on (seed, epoch, batch size) only, so
    a run may continue on another number of ranks. Every epoch has the same number of batches, shows every
    image at least once, and comes in a new order. An identity whose number of images is not a multiple of
    K is filled up with its own images; no image comes twice in a batch unless its identity has fewer than K.

    Iterating does not move the position, because loaders fetch ahead of what is used: the consumer calls
    `advance` for every batch that it has used.

    Attributes:
        epoch: the current epoch, from 0.
        batch: the next batch of it; iteration starts here.
        share: this rank's places in a global batch.

    Raises:
        ConfigError: batch_size is not divisible by images_per_identity * world_size, there are fewer
            identities than a batch needs, or none with images_per_identity images.
    """

    def __init__(
        self,
        identities: IntArray,
        batch_size: int,
        images_per_identity: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        batches: int = 0,
    ) -> None:
        """Take `identities` (N,), one number an image, the global batch size, and the fewest batches of an epoch."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} ranks")
        _, self._labels, counts = np.unique(identities, return_inverse=True, return_counts=True)
        _check(counts, batch_size, images_per_identity, world_size)
        self._counts: IntArray = counts.astype(np.int64)
        self._groups = -(-self._counts // images_per_identity)
        self.batch_size, self.images_per_identity, self.seed = batch_size, images_per_identity, seed
        self._slots = batch_size // images_per_identity
        self._length = max(-(-int(self._groups.sum()) // self._slots), int(self._groups.max()), batches)
        share = batch_size // world_size
        self.share = slice(rank * share, (rank + 1) * share)
        self.epoch = self.batch = 0
        self._plan: tuple[int, IntArray] | None = None

    def __len__(self) -> int:
        """Batches of an epoch, the same in every epoch and on every rank."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's share of each batch from the current position to the end of the epoch."""
        for batch in self.global_batches()[self.batch :, self.share]:
            yield batch.tolist()

    def advance(self) -> None:
        """Mark one batch as used; after the last, the position is the start of the next epoch."""
        self.batch += 1
        if self.batch == len(self):
            self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The position, and the settings it is valid for."""
        names = ("seed", "batch_size", "images_per_identity", "epoch", "batch")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state` was taken, on any number of ranks.

        Raises:
            ConfigError: it was taken with another seed, batch size, images per identity or data set.
        """
        for name in ("seed", "batch_size", "images_per_identity"):
            if state[name] != getattr(self, name):
                raise ConfigError(
                    f"the sampler's state is of {name} {state[name]}, but {name} is {getattr(self, name)}: "
                    "resume with the settings of the run that saved it"
                )
        if not 0 <= state["batch"] < len(self):
            raise ConfigError(
                f"the sampler's state is at batch {state['batch']}, but an epoch has {len(self)} batches: "
                "resume with the training set of the run that saved it"
            )
        self.epoch, self.batch = state["epoch"], state["batch"]

    def global_batches(self) -> IntArray:
        """The current epoch's image indices, (batches, batch_size); identities come in runs of K."""
        if self._plan is None or self._plan[0] != self.epoch:
            rng = np.random.default_rng([self.seed, self.epoch, self.batch_size])
            self._plan = self.epoch, self._draw(rng)
        return self._plan[1]

    def _draw(self, rng: np.random.Generator) -> IntArray:
        """Draw an epoch: groups of K images, dealt to batches so that each holds P distinct identities."""
        T, P, K = self._length, self._slots, self.images_per_identity
        groups = self._groups + _extra_groups(self._groups, T * P - int(self._groups.sum()), rng)
        order = rng.permutation(len(groups))
        runs = groups[order]
        identity = np.repeat(order, runs)
        number = np.arange(T * P) - np.repeat(np.cumsum(runs) - runs, runs)

        # Images by identity, in a fresh order within each; group k of an identity is the k-th K of these,
        # going round when they run out.
        shuffled = rng.permutation(len(self._labels))
        shuffled = shuffled[np.argsort(self._labels[shuffled], kind="stable")]
        first_image = np.cumsum(self._counts) - self._counts
        position = (number[:, None] * K + np.arange(K)) % self._counts[identity, None]
        images = shuffled[first_image[identity, None] + position]

        dealt = np.take_along_axis(
            np.arange(T * P).reshape(P, T), _columns_to_positions(identity.reshape(P, T), rng), axis=1
        )
        return images[rng.permuted(dealt.T, axis=1)].reshape(T, P * K)


def _extra_groups(groups: IntArray, missing: int, rng: np.random.Generator) -> IntArray:
    """How many groups each identity gets beyond its own, `missing` in all.

    Those with the fewest groups get them first, so that none ends with more groups than there are batches;
    what is left over goes to a random choice of the lowest.
    """
    ascending = np.sort(groups)
    cost = np.arange(len(groups)) * ascending - (np.cumsum(ascending) - ascending)
    raised = int(np.searchsorted(cost, missing, side="right"))
    level, left = divmod(missing - int(cost[raised - 1]), raised)
    level += int(ascending[raised - 1])
    extra = np.maximum(level - groups, 0)
    extra[rng.choice(np.flatnonzero(groups <= level), left, replace=False)] += 1
    return extra


def _columns_to_positions(identity_PT: IntArray, rng: np.random.Generator) -> IntArray:
    """For each row a permutation of its T entries after which no column holds an identity twice.

    An identity's run of at most T entries lies within one row or ends in the next one, so an entry only
    has to keep clear of the columns that its own identity was given in the row above.
    """
    P, T = identity_PT.shape
    result = np.empty((P, T), np.int64)
    columns = np.arange(T)
    for row in range(P):
        columns_above, columns = columns, rng.permutation(T)
        if row:
            above, here = identity_PT[row - 1], identity_PT[row]
            continued = int(np.count_nonzero(here == above[-1]))
            taken = np.zeros(T, bool)
            taken[columns_above[above == above[-1]]] = True
            # Free columns first, for the run that continues; the others in any order.
            columns = columns[np.argsort(taken[columns], kind="stable")]
            columns[continued:] = rng.permutation(columns[continued:])
        result[row, columns] = np.arange(T)
    return result


def _check(counts: IntArray, batch_size: int, images_per_identity: int, world_size: int) -> None:
    """Raise ConfigError unless batches can be made of these images per identity."""
    if len(counts) == 0:
        raise ConfigError("the training set is empty: there is nothing to sample batches from")
    sizes = f"data.batch_size {batch_size} with data.images_per_identity {images_per_identity}"
    unit = images_per_identity * world_size
    if batch_size < 1 or batch_size % unit:
        below = max(batch_size // unit * unit, 0)
        nearest = f"{below} or {below + unit}" if below else f"{unit}"
        raise ConfigError(
            f"{sizes} on {world_size} ranks: the batch size must be a multiple of {unit}, such as {nearest}"
        )
    needed, largest = batch_size // images_per_identity, len(counts) // world_size * unit
    if needed > len(counts):
        right = f"data.batch_size at most {largest}" if largest else f"at most {len(counts)} ranks"
        raise ConfigError(
            f"{sizes} needs {needed} identities a batch, but the training set has {len(counts)}: use {right}"
        )
    if images_per_identity > counts.max():
        raise ConfigError(
            f"data.images_per_identity is {images_per_identity}, but no identity of the training set has "
            f"more than {counts.max()} images: use at most that many"
        )
