"""The data of a search: two streams of training batches, and query and gallery to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from autoreid.config import Data
from autoreid.data.loaders import BatchStream
from autoreid.data.market1501 import read_market1501
from autoreid.data.records import Split
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.splits import bilevel, hold_out
from autoreid.data.transforms import training_transform
from autoreid.distributed import World
from autoreid.seeding import derive_seed


@dataclass(frozen=True)
class SearchData:
    """What a search learns from and is measured on.

    Attributes:
        weight_stream: batches that train the weights.
        alpha_stream: batches of other images of the same identities, that train the alphas.
        num_identities: classes of the classifier.
        summary: how the images were divided, in a line.
    """

    weight_stream: BatchStream
    alpha_stream: BatchStream
    query: Split
    gallery: Split
    num_identities: int
    summary: str


def build_search_data(
    data: Data, seed: int, measured: Literal["held_out", "test"], world: World
) -> SearchData:
    """Reads the data set and divides it.

    Raises:
        DataError: a folder is missing or empty, or holds too little to divide.
        ConfigError: batches as asked for cannot be made of these identities on this many ranks.
    """
    dataset = read_market1501(data.root)
    train, query, gallery = hold_out(dataset.train, data.held_out_fraction, derive_seed(seed, "held out"))
    if measured == "test":
        query, gallery = dataset.query, dataset.gallery
    halves = bilevel(train, data.alpha_fraction, data.images_per_identity, derive_seed(seed, "bilevel"))
    identities = np.unique(train.identities)
    transform = training_transform(
        data.height, data.width, data.padding, data.flip, data.erasing, data.brightness, data.contrast
    )

    def stream(split: Split) -> BatchStream:
        sampler = IdentityBalancedSampler(
            split.identities,
            data.batch_size,
            data.images_per_identity,
            derive_seed(seed, split.name),
            world.rank,
            world.size,
        )
        labels = np.searchsorted(identities, split.identities)
        shape = (data.height, data.width)
        return BatchStream(
            split, sampler, labels, transform, shape, data.workers, world.device.type == "cuda"
        )

    summary = (
        f"{dataset.name}: {len(identities)} identities; {len(halves.weights)} images for the weights, "
        f"{len(halves.alphas)} for the alphas ({halves.identities_without_alphas} identities have too few for both); "
        f"retrieval measured on {len(query)} {query.name} and {len(gallery)} {gallery.name} images"
    )
    return SearchData(stream(halves.weights), stream(halves.alphas), query, gallery, len(identities), summary)
