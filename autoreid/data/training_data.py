"""The data of a run: streams of training batches, and the queries and galleries for evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from autoreid.config import Config, Data
from autoreid.data.datasets import read_dataset
from autoreid.data.images import Images, prepare_images
from autoreid.data.levels import build_sampler, divide_levels, label
from autoreid.data.loaders import BatchStream
from autoreid.data.overlap import check_overlap, copied_queries, seen_people
from autoreid.data.records import ReidDataset, Split, combine
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.splits import hold_out
from autoreid.data.synthetic.people import write_synthetic_people
from autoreid.data.targets import check_target
from autoreid.data.transforms import Augmentation
from autoreid.data.used_images import UsedImages
from autoreid.distributed import World
from autoreid.errors import DataError
from autoreid.seeding import derive_seed


@dataclass(frozen=True)
class TrainingData:
    """The data for training a network and for evaluating it.

    Attributes:
        stream: batches for training the weights.
        targets: data sets for evaluation; the queries of each are ranked against its own gallery.
        images: the pixels of all images for training and evaluation.
        num_identities: number of classes of the classifier.
        summary: one line about how the images were divided.
        notes: warnings about the data sets, one line each.
        used: which images the run uses.
    """

    stream: BatchStream
    targets: tuple[ReidDataset, ...]
    images: Images
    num_identities: int
    summary: str
    notes: tuple[str, ...]
    used: UsedImages


@dataclass(frozen=True)
class SearchData(TrainingData):
    """The data for searching a network and for evaluating it.

    Attributes:
        alpha_stream: batches of other images, for training the alphas, see `search.alphas_see`; None if the alphas
            are trained on the batches of the weights.
    """

    alpha_stream: BatchStream | None


def generate_people(data: Data) -> None:
    """Write those data sets of synthetic people that are used and do not exist yet."""
    for name in dict.fromkeys(data.sources + data.targets):
        if name in data.synthetic:
            write_synthetic_people(data.root / name, data.synthetic[name])


def read_datasets(config: Config) -> dict[str, ReidDataset]:
    """Read the data sets that the run uses, by name; lists their folders, decodes no image.

    Raises:
        DataError: a folder is missing or has an unknown layout, or data sets share images or people (`check_overlap`).
    """
    data, is_test = config.data, config.evaluation.split == "test"
    wanted = dict.fromkeys(data.sources + data.targets if is_test else data.sources)
    datasets = {name: read_dataset(data.root, name) for name in wanted}
    sources = [(name, _images_for_training(data, datasets[name])) for name in data.sources]
    targets = [datasets[name] for name in data.targets or data.sources] if is_test else []
    notes = check_overlap(sources, targets)
    for target in targets:
        copies = copied_queries(target) if config.evaluation.keep_same_camera else ()
        datasets[target.name] = replace(target, notes=target.notes + notes[target.name] + copies)
    return datasets


def people_seen_in_training(data: Data, targets: Sequence[ReidDataset]) -> list[str]:
    """Return warnings about targets that show the same people as the training images of a network.

    Args:
        data: the section of the training's config. Sources that cannot be read any more are not compared.
    """
    sources = []
    for name in data.sources:
        with suppress(DataError, OSError):  # OSError: another user's folder
            sources.append((name, _images_for_training(data, read_dataset(data.root, name))))
    return seen_people(sources, targets)


def _images_for_training(data: Data, source: ReidDataset) -> Split:
    return source.all_people() if data.combine_all else source.train


def run_images(config: Config, world: World, datasets: Mapping[str, ReidDataset]) -> Images:
    """Prepare the pixels of a run: create missing caches, and find broken images that are to be skipped.

    Raises:
        DataError: images are broken and `data.on_broken_image` is not "skip".
    """
    data = config.data
    parts = ("train", "query", "gallery")
    used = {(name, part) for name in data.sources for part in (parts if data.combine_all else parts[:1])}
    if config.evaluation.split == "test":
        used |= {(name, part) for name in data.targets or data.sources for part in parts[1:]}
    splits = {f"{name}-{part}": getattr(datasets[name], part) for name, part in sorted(used)}
    return prepare_images(data, {name: split for name, split in splits.items() if len(split)}, world)


def prepare_data(config: Config, world: World) -> tuple[Images, dict[str, ReidDataset]]:
    """Prepare the data of a run in a single process; synthetic people that do not exist are generated first.

    Returns:
        The pixels and the data sets, for `build_training_data` and `build_search_data`.

    Raises:
        DataError: see `read_datasets` and `run_images`.
    """
    generate_people(config.data)
    datasets = read_datasets(config)
    return run_images(config, world, datasets), datasets


def build_training_data(
    config: Config,
    world: World,
    images: Images | None = None,
    datasets: Mapping[str, ReidDataset] | None = None,
) -> TrainingData:
    """Build the data for a training.

    Args:
        images: the run's pixels; None decodes each image every time, and assumes that none is broken.
        datasets: the run's data sets, see `read_datasets`; None reads them.

    Raises:
        DataError: a folder is missing or empty, or a target has no queries.
        ConfigError: the configured batches cannot be formed from these identities on this number of ranks.
    """
    images = images or Images(config.data.height, config.data.width)
    train, targets, notes, used = _select(config, images, datasets)
    identities = np.unique(train.identities)
    summary = f"{_summary(config, train)}, {len(train)} images; {_measured_on(targets)}"
    stream = _stream(config, identities, world, images, train, build_sampler(config, train, world))
    return TrainingData(stream, targets, images, len(identities), summary, notes, used)


def build_search_data(
    config: Config,
    world: World,
    images: Images | None = None,
    datasets: Mapping[str, ReidDataset] | None = None,
) -> SearchData:
    """Build the data for a search; a bilevel search divides the images between weights and alphas.

    Args:
        images, datasets: as in `build_training_data`.

    Raises:
        DataError: a folder is missing or empty, has too few images to divide, or a target has no queries.
        ConfigError: the configured batches cannot be formed from these identities on this number of ranks.
    """
    if config.search.level == "single":
        return SearchData(**vars(build_training_data(config, world, images, datasets)), alpha_stream=None)
    images = images or Images(config.data.height, config.data.width)
    datasets = read_datasets(config) if datasets is None else datasets
    train, targets, notes, used = _select(config, images, datasets)
    levels = divide_levels(config, train, datasets, world)
    identities = np.unique(levels.weights.split.identities)
    summary = f"{_summary(config, train)}; {levels.summary}; {_measured_on(targets)}"
    stream = partial(_stream, config, identities, world, images)
    return SearchData(
        stream(*levels.weights),
        targets,
        images,
        len(identities),
        summary,
        notes,
        used,
        stream(*levels.alphas),
    )


def _select(
    config: Config, images: Images, datasets: Mapping[str, ReidDataset] | None
) -> tuple[Split, tuple[ReidDataset, ...], tuple[str, ...], UsedImages]:
    """Return the training images of all sources as one split, the targets for evaluation, warnings, and all images."""
    data = config.data
    if datasets is None:
        datasets = read_datasets(config)
    datasets = {name: images.readable_dataset(dataset) for name, dataset in datasets.items()}
    sources = [datasets[name] for name in data.sources]
    notes = tuple(note for dataset in datasets.values() for note in dataset.notes) + images.notes
    train = combine([_images_for_training(data, source) for source in sources])
    if not len(train):
        raise DataError("; ".join([f"{' + '.join(data.sources)}: no images for training", *notes]))
    if len(set(train.paths)) < len(train):
        (duplicate, _), *_ = Counter(train.paths).most_common(1)
        raise DataError(
            f"{duplicate}: duplicate image: it appears twice in the training data ({' and '.join(data.sources)})"
        )
    alone = int((np.unique(train.identities, return_counts=True)[1] == 1).sum())
    if alone:
        notes += (
            f"{alone} identities have a single image, which is repeated {data.images_per_identity} times in a batch",
        )
    everything = train
    seed = derive_seed(config.seed, "held out")
    keep_same_camera = config.evaluation.keep_same_camera
    train, query, gallery = hold_out(train, data.held_out_fraction, seed, keep_same_camera)
    if config.evaluation.split == "held_out":
        held_out = ReidDataset("held-out", train, query, gallery)
        return train, (held_out,), notes, UsedImages(everything, ())
    targets = tuple(datasets[name] for name in data.targets or data.sources)
    for target in targets:
        notes += check_target(target, keep_same_camera)
        seen = {*target.query.paths, *target.gallery.paths}.intersection(train.paths)
        if seen:
            raise DataError(f"{min(seen)}: is used both for training and for evaluation on {target.name}")
    return train, targets, notes, UsedImages(everything, targets)


def _summary(config: Config, train: Split) -> str:
    return f"{' + '.join(config.data.sources)}: {train.num_identities} identities"


def _measured_on(targets: Sequence[ReidDataset]) -> str:
    each = [
        f"{len(target.query)} queries and {len(target.gallery)} gallery images of {target.name}"
        for target in targets
    ]
    return f"evaluated on {', '.join(each)}"


def _stream(
    config: Config,
    identities: npt.NDArray[np.int64],
    world: World,
    images: Images,
    split: Split,
    sampler: IdentityBalancedSampler,
) -> BatchStream:
    data: Data = config.data
    if len(identities) < 2:
        raise DataError(
            f"{' + '.join(data.sources)}: the training set has {len(identities)} identity; a loss needs two or more"
        )
    augmentation = Augmentation(
        data.padding, data.flip, data.erasing, data.brightness, data.contrast, data.autoaugment
    )
    labels = label(split.identities, identities)
    return BatchStream(split, sampler, labels, images, augmentation, data.workers, world.device)
