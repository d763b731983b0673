"""The data of a run: streams of training batches, and query and gallery to measure on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from autoreid.config import Config, Data
from autoreid.data.datasets import read_dataset
from autoreid.data.loaders import BatchStream
from autoreid.data.records import ReidDataset, Split, combine
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.splits import bilevel, hold_out
from autoreid.data.synthetic_people import write_synthetic_people
from autoreid.data.transforms import training_transform
from autoreid.distributed import World
from autoreid.errors import DataError
from autoreid.seeding import derive_seed


@dataclass(frozen=True)
class TrainingData:
    """What a network learns from and is measured on.

    Attributes:
        stream: batches that train the weights.
        targets: whose queries and galleries are measured, each by itself.
        num_identities: classes of the classifier.
        summary: how the images were divided, in a line.
        notes: what the user should hear of the data sets, a line each.
    """

    stream: BatchStream
    targets: tuple[ReidDataset, ...]
    num_identities: int
    summary: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SearchData(TrainingData):
    """What a search learns from and is measured on.

    Attributes:
        alpha_stream: batches of other images of the same identities, that train the alphas; None where the
            alphas learn from the weights' batches.
    """

    alpha_stream: BatchStream | None


def build_training_data(config: Config, world: World) -> TrainingData:
    """Reads the data sets for a training.

    Raises:
        DataError: a folder is missing or empty, or a target has no queries.
        ConfigError: batches as asked for cannot be made of these identities on this many ranks.
    """
    train, targets, notes = _read(config)
    identities = np.unique(train.identities)
    summary = f"{_summary(config, train)}, {len(train)} images; {_measured_on(targets)}"
    stream = _stream(config, identities, world, train)
    return TrainingData(stream, targets, len(identities), summary, notes)


def build_search_data(config: Config, world: World) -> SearchData:
    """Reads the data sets for a search; in a bilevel one, divides their images between weights and alphas.

    Raises:
        DataError: a folder is missing or empty, holds too little to divide, or a target has no queries.
        ConfigError: batches as asked for cannot be made of these identities on this many ranks.
    """
    if config.search.level == "single":
        return SearchData(**vars(build_training_data(config, world)), alpha_stream=None)
    train, targets, notes = _read(config)
    data = config.data
    halves = bilevel(
        train, data.alpha_fraction, data.images_per_identity, derive_seed(config.seed, "bilevel")
    )
    identities = np.unique(train.identities)
    summary = (
        f"{_summary(config, train)}; {len(halves.weights)} images for the weights, "
        f"{len(halves.alphas)} for the alphas ({halves.identities_without_alphas} identities have too few for "
        f"both); {_measured_on(targets)}"
    )
    stream = partial(_stream, config, identities, world)
    return SearchData(stream(halves.weights), targets, len(identities), summary, notes, stream(halves.alphas))


def draw_people(data: Data) -> None:
    """Draws those sources and targets that are synthetic people and not there yet."""
    for name in dict.fromkeys(data.sources + data.targets):
        if name in data.synthetic:
            write_synthetic_people(data.root / name, data.synthetic[name])


def _read(config: Config) -> tuple[Split, tuple[ReidDataset, ...], tuple[str, ...]]:
    """The sources' training images as one split, what the config measures on, and the data sets' notes."""
    data = config.data
    wanted = data.sources if config.evaluation.split == "held_out" else data.sources + data.targets
    datasets = {name: read_dataset(data.root, name) for name in dict.fromkeys(wanted)}
    sources = [datasets[name] for name in data.sources]
    notes = tuple(note for dataset in datasets.values() for note in dataset.notes)
    train = combine([source.all_people() if data.combine_all else source.train for source in sources])
    if len(set(train.paths)) < len(train):
        (twice, _), *_ = Counter(train.paths).most_common(1)
        raise DataError(f"{twice}: stands twice among the images of {' and '.join(data.sources)}")
    seed = derive_seed(config.seed, "held out")
    train, query, gallery = hold_out(train, data.held_out_fraction, seed)
    if config.evaluation.split == "held_out":
        return train, (ReidDataset("held-out", train, query, gallery),), notes
    targets = tuple(datasets[name] for name in data.targets or data.sources)
    for target in targets:
        if not len(target.query):
            raise DataError(f"{target.name}: has no queries to measure with; name others in data.targets")
        seen = {*target.query.paths, *target.gallery.paths}.intersection(train.paths)
        if seen:
            raise DataError(f"{min(seen)}: is trained on, and measured as {target.name}'s")
    return train, targets, notes


def _summary(config: Config, train: Split) -> str:
    return f"{' + '.join(config.data.sources)}: {train.num_identities} identities"


def _measured_on(targets: Sequence[ReidDataset]) -> str:
    each = [
        f"{len(target.query)} queries and {len(target.gallery)} gallery images of {target.name}"
        for target in targets
    ]
    return f"retrieval measured on {', '.join(each)}"


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
