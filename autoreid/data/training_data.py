"""The data of a run: streams of training batches, and query and gallery to measure on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from autoreid.config import Config, Data
from autoreid.data.datasets import read_dataset
from autoreid.data.images import Images, prepare_images
from autoreid.data.levels import build_sampler, divide_levels, label
from autoreid.data.loaders import BatchStream
from autoreid.data.records import ReidDataset, Split, combine
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.splits import hold_out
from autoreid.data.synthetic.people import write_synthetic_people
from autoreid.data.transforms import Augmentation
from autoreid.distributed import World
from autoreid.errors import DataError
from autoreid.seeding import derive_seed


@dataclass(frozen=True)
class TrainingData:
    """What a network learns from and is measured on.

    Attributes:
        stream: batches that train the weights.
        targets: whose queries and galleries are measured, each by itself.
        images: the pixels of all that is trained on or measured.
        num_identities: classes of the classifier.
        summary: how the images were divided, in a line.
        notes: what the user should hear of the data sets, a line each.
    """

    stream: BatchStream
    targets: tuple[ReidDataset, ...]
    images: Images
    num_identities: int
    summary: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SearchData(TrainingData):
    """What a search learns from and is measured on.

    Attributes:
        alpha_stream: batches of other images, for training the alphas, see `search.alphas_see`; None if the alphas
            are trained on the batches of the weights.
    """

    alpha_stream: BatchStream | None


def run_images(config: Config, world: World) -> Images:
    """The pixels of a run: from caches, which are made now if need be, and without the broken images to be skipped.

    Raises:
        DataError: a data set cannot be read, or images that the config does not say to skip.
    """
    datasets = _datasets(config)
    data = config.data
    parts = ("train", "query", "gallery")
    used = {(name, part) for name in data.sources for part in (parts if data.combine_all else parts[:1])}
    if config.evaluation.split == "test":
        used |= {(name, part) for name in data.targets or data.sources for part in parts[1:]}
    splits = {f"{name}-{part}": getattr(datasets[name], part) for name, part in sorted(used)}
    return prepare_images(data, {name: split for name, split in splits.items() if len(split)}, world)


def build_training_data(config: Config, world: World, images: Images | None = None) -> TrainingData:
    """Reads the data sets for a training.

    Args:
        images: the run's pixels; None decodes every image each time, and expects none to be broken.

    Raises:
        DataError: a folder is missing or empty, or a target has no queries.
        ConfigError: batches as asked for cannot be made of these identities on this many ranks.
    """
    images = images or Images(config.data.height, config.data.width)
    train, targets, notes = _read(config, images)
    identities = np.unique(train.identities)
    summary = f"{_summary(config, train)}, {len(train)} images; {_measured_on(targets)}"
    stream = _stream(config, identities, world, images, train, build_sampler(config, train, world))
    return TrainingData(stream, targets, images, len(identities), summary, notes)


def build_search_data(config: Config, world: World, images: Images | None = None) -> SearchData:
    """Reads the data sets for a search; in a bilevel one, divides their images between weights and alphas.

    Args:
        images: as for a training.

    Raises:
        DataError: a folder is missing or empty, holds too little to divide, or a target has no queries.
        ConfigError: batches as asked for cannot be made of these identities on this many ranks.
    """
    if config.search.level == "single":
        return SearchData(**vars(build_training_data(config, world, images)), alpha_stream=None)
    images = images or Images(config.data.height, config.data.width)
    train, targets, notes = _read(config, images)
    datasets = _datasets(config) if config.search.alphas_see == "domains" else {}
    levels = divide_levels(config, train, datasets, world)
    identities = np.unique(levels.weights.split.identities)
    summary = f"{_summary(config, train)}; {levels.summary}; {_measured_on(targets)}"
    stream = partial(_stream, config, identities, world, images)
    return SearchData(
        stream(*levels.weights), targets, images, len(identities), summary, notes, stream(*levels.alphas)
    )


def draw_people(data: Data) -> None:
    """Draws those sources and targets that are synthetic people and not there yet."""
    for name in dict.fromkeys(data.sources + data.targets):
        if name in data.synthetic:
            write_synthetic_people(data.root / name, data.synthetic[name])


def _datasets(config: Config) -> dict[str, ReidDataset]:
    """What the config trains on and measures, by name."""
    data = config.data
    wanted = data.sources if config.evaluation.split == "held_out" else data.sources + data.targets
    return {name: read_dataset(data.root, name) for name in dict.fromkeys(wanted)}


def _read(config: Config, images: Images) -> tuple[Split, tuple[ReidDataset, ...], tuple[str, ...]]:
    """The sources' training images as one split, what the config measures on, and what the user should hear."""
    data = config.data
    datasets = {name: _readable(dataset, images) for name, dataset in _datasets(config).items()}
    sources = [datasets[name] for name in data.sources]
    notes = tuple(note for dataset in datasets.values() for note in dataset.notes) + images.notes
    train = combine([source.all_people() if data.combine_all else source.train for source in sources])
    if len(set(train.paths)) < len(train):
        (twice, _), *_ = Counter(train.paths).most_common(1)
        raise DataError(
            f"{twice}: is a duplicate: it appears twice among the images of {' and '.join(data.sources)}"
        )
    alone = int((np.unique(train.identities, return_counts=True)[1] == 1).sum())
    if alone:
        notes += (
            f"{alone} identities have one image, which a batch then shows {data.images_per_identity} times",
        )
    seed = derive_seed(config.seed, "held out")
    train, query, gallery = hold_out(train, data.held_out_fraction, seed)
    if config.evaluation.split == "held_out":
        return train, (ReidDataset("held-out", train, query, gallery),), notes
    targets = tuple(datasets[name] for name in data.targets or data.sources)
    for target in targets:
        if not len(target.query):
            raise DataError(f"{target.name}: has no queries to measure with; name others in data.targets")
        notes += _unmatched(target)
        seen = {*target.query.paths, *target.gallery.paths}.intersection(train.paths)
        if seen:
            raise DataError(f"{min(seen)}: is trained on, and measured as {target.name}'s")
    return train, targets, notes


def _unmatched(target: ReidDataset) -> tuple[str, ...]:
    """A note if some queries have nobody to be found in the gallery; raises DataError if none has."""
    query, gallery = target.query, target.gallery
    searched = np.isin(gallery.identities, query.identities)
    views = set(zip(gallery.identities[searched].tolist(), gallery.cameras[searched].tolist(), strict=True))
    cameras = Counter(person for person, _ in views)
    pairs = zip(query.paths, query.identities.tolist(), query.cameras.tolist(), strict=True)
    alone = [path for path, person, camera in pairs if cameras[person] == ((person, camera) in views)]
    if len(alone) == len(query):
        raise DataError(f"{target.name}: the gallery shows no query's identity by another camera")
    if not alone:
        return ()
    return (
        f"{target.name}: {len(alone)} of {len(query)} queries do not count, for the gallery does not show their "
        f"identity by another camera, such as {alone[0]}",
    )


def _readable(dataset: ReidDataset, images: Images) -> ReidDataset:
    train, query, gallery = map(images.readable, (dataset.train, dataset.query, dataset.gallery))
    return replace(dataset, train=train, query=query, gallery=gallery)


def _summary(config: Config, train: Split) -> str:
    return f"{' + '.join(config.data.sources)}: {train.num_identities} identities"


def _measured_on(targets: Sequence[ReidDataset]) -> str:
    each = [
        f"{len(target.query)} queries and {len(target.gallery)} gallery images of {target.name}"
        for target in targets
    ]
    return f"retrieval measured on {', '.join(each)}"


def _stream(
    config: Config,
    identities: npt.NDArray[np.int64],
    world: World,
    images: Images,
    split: Split,
    sampler: IdentityBalancedSampler,
) -> BatchStream:
    data: Data = config.data
    augmentation = Augmentation(data.padding, data.flip, data.erasing, data.brightness, data.contrast)
    labels = label(split.identities, identities)
    return BatchStream(split, sampler, labels, images, augmentation, data.workers, world.device)
