"""The data of a run: streams of training batches, and query and gallery to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from autoreid.config import Config, Data
from autoreid.data.loaders import BatchStream
from autoreid.data.market1501 import read_market1501
from autoreid.data.records import ReidDataset, Split
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.splits import bilevel, hold_out
from autoreid.data.transforms import training_transform
from autoreid.distributed import World
from autoreid.seeding import derive_seed


@dataclass(frozen=True)
class TrainingData:
    """What a network learns from and is measured on.

    Attributes:
        stream: batches that train the weights.
        num_identities: classes of the classifier.
        summary: how the images were divided, in a line.
    """

    stream: BatchStream
    query: Split
    gallery: Split
    num_identities: int
    summary: str


@dataclass(frozen=True)
class SearchData(TrainingData):
    """What a search learns from and is measured on.

    Attributes:
        alpha_stream: batches of other images of the same identities, that train the alphas.
    """

    alpha_stream: BatchStream


def build_training_data(config: Config, world: World) -> TrainingData:
    """Reads the data set for a training.

    Raises:
        DataError: a folder is missing or empty.
        ConfigError: batches as asked for cannot be made of these identities on this many ranks.
    """
    name, train, query, gallery = _read(config)
    identities = np.unique(train.identities)
    summary = f"{name}: {len(identities)} identities, {len(train)} images; {_measured_on(query, gallery)}"
    return TrainingData(_stream(config, identities, world, train), query, gallery, len(identities), summary)


def build_search_data(config: Config, world: World) -> SearchData:
    """Reads the data set for a search, and divides its images between weights and alphas.

    Raises:
        DataError: a folder is missing or empty, or holds too little to divide.
        ConfigError: batches as asked for cannot be made of these identities on this many ranks.
    """
    name, train, query, gallery = _read(config)
    data = config.data
    halves = bilevel(
        train, data.alpha_fraction, data.images_per_identity, derive_seed(config.seed, "bilevel")
    )
    identities = np.unique(train.identities)
    summary = (
        f"{name}: {len(identities)} identities; {len(halves.weights)} images for the weights, "
        f"{len(halves.alphas)} for the alphas ({halves.identities_without_alphas} identities have too few for "
        f"both); {_measured_on(query, gallery)}"
    )
    stream = partial(_stream, config, identities, world)
    return SearchData(stream(halves.weights), query, gallery, len(identities), summary, stream(halves.alphas))


def _read(config: Config) -> tuple[str, Split, Split, Split]:
    """The data set's name, training images, and the query and gallery that the config measures on."""
    dataset: ReidDataset = read_market1501(config.data.root)
    seed = derive_seed(config.seed, "held out")
    train, query, gallery = hold_out(dataset.train, config.data.held_out_fraction, seed)
    if config.evaluation.split == "test":
        query, gallery = dataset.query, dataset.gallery
    return dataset.name, train, query, gallery


def _measured_on(query: Split, gallery: Split) -> str:
    return f"retrieval measured on {len(query)} {query.name} and {len(gallery)} {gallery.name} images"


def _stream(config: Config, identities: npt.NDArray[np.int64], world: World, split: Split) -> BatchStream:
    data: Data = config.data
    seed = derive_seed(config.seed, split.name)
    sampler = IdentityBalancedSampler(
        split.identities, data.batch_size, data.images_per_identity, seed, world.rank, world.size
    )
    transform = training_transform(
        data.height, data.width, data.padding, data.flip, data.erasing, data.brightness, data.contrast
    )
    labels = np.searchsorted(identities, split.identities)
    shape = (data.height, data.width)
    return BatchStream(split, sampler, labels, transform, shape, data.workers, world.device.type == "cuda")
