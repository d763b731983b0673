"""Leave one domain out: in each epoch of a search, the alphas learn from one source and the weights from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from autoreid.data.records import ReidDataset, Split
from autoreid.data.sampler import IdentityBalancedSampler, IntArray
from autoreid.errors import ConfigError


class RotatingSampler(IdentityBalancedSampler):
    """An identity-balanced sampler that uses one part of the images in each epoch; the parts take turns.

    Epoch e uses part e mod (number of parts). All epochs have the same number of batches. If a part is too small for
    that, its images are repeated; if it is too large, the epoch has some of its images only.

    Raises:
        ConfigError: a part has too few identities for a batch; names the part.
    """

    def __init__(
        self,
        identities: IntArray,
        parts: Mapping[str, IntArray],
        batch_size: int,
        images_per_identity: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        batches: int = 0,
        cameras: IntArray | None = None,
    ) -> None:
        """Take `identities` (N,), the indices of each part's images by its name, and the global batch size.

        Args:
            batches: number of batches in an epoch; 0 for as many as it takes to use all images of every part.
            cameras: as in `IdentityBalancedSampler`.
        """
        super().__init__(identities, batch_size, images_per_identity, seed, rank, world_size)
        build = partial(
            IdentityBalancedSampler,
            batch_size=batch_size,
            images_per_identity=images_per_identity,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        for name, images in parts.items():
            try:
                build(identities[images])
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None
        self._length = batches or max(len(build(identities[images])) for images in parts.values())
        self._turns = [
            (
                images,
                build(
                    identities[images],
                    batches=self._length,
                    cameras=None if cameras is None else cameras[images],
                ),
            )
            for images in parts.values()
        ]

    def global_batches(self) -> IntArray:
        """The current epoch's image indices, (batches, batch_size), all of one part."""
        images, sampler = self._turns[self.epoch % len(self._turns)]
        sampler.epoch = self.epoch
        return images[sampler.global_batches()[: len(self)]]


def domains_of(train: Split, sources: Sequence[ReidDataset]) -> IntArray:
    """Return the index of the source that each training image is from, (N,)."""
    source_of = {
        path: number
        for number, source in enumerate(sources)
        for split in (source.train, source.query, source.gallery)
        for path in split.paths
    }
    return np.array([source_of[path] for path in train.paths], dtype=np.int64)
