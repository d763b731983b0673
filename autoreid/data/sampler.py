"""Batches of P identities with K images each, divided among the ranks without overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from autoreid.errors import ConfigError

IntArray = npt.NDArray[np.int64]


class IdentityBalancedSampler(Sampler[list[int]]):
    """A batch sampler: yields this rank's image indices of each batch, grouped by identity.

    A global batch has P different identities with K images each; it is cut into `world_size` equal parts, and
    rank r takes part r. The sequence of global batches depends only on (seed, epoch, batch size), so a run may
    be resumed on a different number of ranks. Every epoch has the same number of batches, contains every image
    at least once, and has a new random order. If an identity's number of images is not a multiple of K, some of
    its images are repeated; an image is repeated within a batch only if its identity has fewer than K images.

    Iterating does not change the position, because loaders prefetch: the consumer calls `advance` after using
    a batch.

    Attributes:
        epoch: the current epoch, counted from 0.
        batch: index of the next batch in the epoch, where iteration starts.
        share: this rank's slice of a global batch.

    Raises:
        ConfigError: batch_size is not divisible by images_per_identity * world_size, there are fewer
            identities than a batch needs, or none has images_per_identity images.
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
        cameras: IntArray | None = None,
    ) -> None:
        """Take `identities` (N,), the identity of each image, and the global batch size.

        Args:
            batches: fewest batches in an epoch; images are repeated if need be.
            cameras: (N,), the camera of each image: the K images of an identity are then from several cameras where
                that is possible. None chooses them at random.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} ranks")
        _, self._labels, counts = np.unique(identities, return_inverse=True, return_counts=True)
        _check(counts, batch_size, images_per_identity, world_size)
        self._counts: IntArray = counts.astype(np.int64)
        self._groups = -(-self._counts // images_per_identity)
        self._cameras = cameras
        self.batch_size, self.images_per_identity, self.seed = batch_size, images_per_identity, seed
        self._slots = batch_size // images_per_identity
        self._length = max(-(-int(self._groups.sum()) // self._slots), int(self._groups.max()), batches)
        share = batch_size // world_size
        self.share = slice(rank * share, (rank + 1) * share)
        self.epoch = self.batch = 0
        self._plan: tuple[int, IntArray] | None = None

    def __len__(self) -> int:
        """Number of batches in an epoch; the same in every epoch and on every rank."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's share of each batch from the current position to the end of the epoch."""
        for batch in self.global_batches()[self.batch :, self.share]:
            yield batch.tolist()

    def advance(self) -> None:
        """Mark one batch as used; after the last one, move to the start of the next epoch."""
        self.batch += 1
        if self.batch == len(self):
            self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return the position, and the settings for which it is valid."""
        names = ("seed", "batch_size", "images_per_identity", "epoch", "batch")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume at a saved position, on any number of ranks.

        Raises:
            ConfigError: it was saved with another seed, batch size, images per identity or data set.
        """
        for name in ("seed", "batch_size", "images_per_identity"):
            if state[name] != getattr(self, name):
                raise ConfigError(
                    f"the saved sampler state has {name} {state[name]}, but {name} is {getattr(self, name)}: "
                    "resume with the settings of the run that saved it"
                )
        if not 0 <= state["batch"] < len(self):
            raise ConfigError(
                f"the saved sampler state is at batch {state['batch']}, but an epoch has {len(self)} batches: "
                "resume with the training set of the run that saved it"
            )
        self.epoch, self.batch = state["epoch"], state["batch"]

    def global_batches(self) -> IntArray:
        """Return the current epoch's image indices, (batches, batch_size); each K in a row share an identity."""
        if self._plan is None or self._plan[0] != self.epoch:
            rng = np.random.default_rng([self.seed, self.epoch, self.batch_size])
            self._plan = self.epoch, self._sample_epoch(rng)
        return self._plan[1]

    def _sample_epoch(self, rng: np.random.Generator) -> IntArray:
        """Form groups of K images and deal them to batches so that each batch has P different identities."""
        T, P, K = self._length, self._slots, self.images_per_identity
        groups = self._groups + _extra_groups(self._groups, T * P - int(self._groups.sum()), rng)
        order = rng.permutation(len(groups))
        runs = groups[order]
        identity = np.repeat(order, runs)
        number = np.arange(T * P) - np.repeat(np.cumsum(runs) - runs, runs)

        # Images sorted by identity, shuffled within each; group k of an identity takes its k-th K images,
        # starting over when there are no more.
        shuffled = rng.permutation(len(self._labels))
        shuffled = shuffled[np.argsort(self._labels[shuffled], kind="stable")]
        first_image = np.cumsum(self._counts) - self._counts
        if self._cameras is not None:
            shuffled = _spread_cameras(shuffled, self._labels[shuffled], self._cameras[shuffled], K, rng)
        position = (number[:, None] * K + np.arange(K)) % self._counts[identity, None]
        images = shuffled[first_image[identity, None] + position]

        dealt = np.take_along_axis(
            np.arange(T * P).reshape(P, T), _columns_to_positions(identity.reshape(P, T), rng), axis=1
        )
        return images[rng.permuted(dealt.T, axis=1)].reshape(T, P * K)


def _spread_cameras(
    images: IntArray, labels: IntArray, cameras: IntArray, K: int, rng: np.random.Generator
) -> IntArray:
    """Reorder the images of each identity so that each K in a row are from different cameras as far as possible.

    The images of an identity are sorted by camera, with the most frequent camera last and the others in random
    order. They are then dealt to the identity's groups of K like cards: one to each group, then a second one to each.
    So a group is from a single camera only if the others have too few images.

    Args:
        images: (N,), sorted by identity, in random order within each.
        labels: (N,) identity of each image, 0 to P - 1.
        cameras: (N,) camera of each image.
        K: images in a group.
    """
    _, camera = np.unique(cameras, return_inverse=True)
    pair = labels * (camera.max() + 1) + camera
    pairs, of_pair, sizes = np.unique(pair, return_inverse=True, return_counts=True)
    identity = pairs // (camera.max() + 1)
    order = np.lexsort((rng.random(len(pairs)), sizes, identity))
    is_last = np.append(identity[order][1:] != identity[order][:-1], True)
    order = order[np.lexsort((rng.random(len(pairs)), is_last, identity[order]))]
    turn = np.empty(len(pairs), np.int64)
    turn[order] = np.arange(len(pairs))

    counts = np.bincount(labels)
    start = (np.cumsum(counts) - counts)[labels]
    place = np.arange(len(images)) - start
    dealt = np.lexsort((place // K, place % K, labels))
    # The last group may be short and then repeats the first images: beginning with one image of the most frequent
    # camera keeps it mixed.
    dealt = dealt[start + (place + 1) % counts[labels]]
    result = np.empty_like(images)
    result[dealt] = images[np.argsort(turn[of_pair], kind="stable")]
    return result


def _extra_groups(groups: IntArray, missing: int, rng: np.random.Generator) -> IntArray:
    """Return how many extra groups each identity gets, `missing` in total.

    Identities with the fewest groups get them first, so that none ends up with more groups than there are
    batches; the remainder goes to a random choice of identities at the lowest level.
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
    """Return for each row a permutation of its T entries such that no column contains an identity twice.

    An identity's run has at most T entries, so it is within one row or continues in the next; an entry only has
    to avoid the columns that its identity was given in the row above.
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
            # Free columns first, for the run that continues; the other entries in any order.
            columns = columns[np.argsort(taken[columns], kind="stable")]
            columns[continued:] = rng.permutation(columns[continued:])
        result[row, columns] = np.arange(T)
    return result


def _check(counts: IntArray, batch_size: int, images_per_identity: int, world_size: int) -> None:
    """Raise ConfigError if batches cannot be formed from these numbers of images per identity."""
    if len(counts) == 0:
        raise ConfigError("the training set is empty")
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
            f"{sizes} needs {needed} identities per batch, but the training set has {len(counts)}: use {right}"
        )
    if images_per_identity > counts.max():
        raise ConfigError(
            f"data.images_per_identity is {images_per_identity}, but no identity in the training set has "
            f"more than {counts.max()} images: use at most {counts.max()}"
        )
