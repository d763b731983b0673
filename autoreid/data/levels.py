"""Divides the training images between the two levels of a search so that they differ in more than the image.

In real data sets, images of one identity by one camera are near duplicates. If both levels see such images, the alphas
are trained on what the weights have seen already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autoreid.config import Config
from autoreid.data.domains import RotatingSampler, domains_of
from autoreid.data.records import ReidDataset, Split, join
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.splits import BilevelSplit, bilevel
from autoreid.distributed import World
from autoreid.errors import DataError
from autoreid.seeding import derive_seed


class Level(NamedTuple):
    """The images of one level, and the sampler of its batches."""

    split: Split
    sampler: IdentityBalancedSampler


class Levels(NamedTuple):
    """The images of both levels, and a summary of how they were divided."""

    weights: Level
    alphas: Level
    summary: str


def divide_levels(config: Config, train: Split, datasets: Mapping[str, ReidDataset], world: World) -> Levels:
    """Divide the training images between weights and alphas, as `search.alphas_see` says.

    Args:
        datasets: the sources, by name.

    Raises:
        DataError: there are too few images to divide.
        ConfigError: the configured batches cannot be formed on this number of ranks.
    """
    see, data = config.search.alphas_see, config.data
    if see == "domains":
        return _leave_domains_out(config, train, [datasets[name] for name in data.sources], world)
    seed = derive_seed(config.seed, "bilevel")
    halves = DIVISIONS[see](train, data.alpha_fraction, data.images_per_identity, seed)
    weights, alphas = (
        Level(half, build_sampler(config, half, world)) for half in (halves.weights, halves.alphas)
    )
    return Levels(weights, alphas, _summary(see, halves))


def _summary(see: str, halves: BilevelSplit) -> str:
    images = f"{len(halves.weights)} images for the weights, {len(halves.alphas)} for the alphas"
    alone = halves.identities_without_alphas
    if see == "images":
        return f"{images} ({alone} identities have too few for both)"
    if see == "cameras":
        return (
            f"{images}, by other cameras ({alone} identities cannot be divided and are for the weights only)"
        )
    common = np.intersect1d(halves.weights.identities, halves.alphas.identities).size
    return (
        f"{images}; {halves.weights.num_identities} identities for the weights, {halves.alphas.num_identities} for "
        f"the alphas, {common} of them in both ({alone} have too few images for both)"
    )


def build_sampler(config: Config, split: Split, world: World) -> IdentityBalancedSampler:
    """Build the sampler of a split's batches.

    Raises:
        ConfigError: the configured batches cannot be formed on this number of ranks.
    """
    return IdentityBalancedSampler(**_batches(config, split, world))


def _batches(config: Config, split: Split, world: World) -> dict[str, Any]:
    """The arguments of every sampler of a split."""
    return {
        "identities": split.identities,
        "batch_size": config.data.batch_size,
        "images_per_identity": config.data.images_per_identity,
        "seed": derive_seed(config.seed, split.name),
        "cameras": split.cameras if config.data.mix_cameras else None,
        "rank": world.rank,
        "world_size": world.size,
    }


def _leave_domains_out(config: Config, train: Split, sources: Sequence[ReidDataset], world: World) -> Levels:
    """Both levels with all images: in each epoch one source is for the alphas and the others for the weights."""
    every_image = np.arange(len(train))
    weights, alphas = (
        train.select(every_image, f"{train.name} ({level})") for level in ("weights", "alphas")
    )
    domains = domains_of(train, sources)
    own, others = {}, {}
    for number, source in enumerate(sources):
        own[source.name] = np.flatnonzero(domains == number)
        others[f"the sources without {source.name}"] = np.flatnonzero(domains != number)
    of_weights = RotatingSampler(**_batches(config, weights, world), parts=others)
    # Both have the same epochs, so that they leave out the same domain.
    of_alphas = RotatingSampler(**_batches(config, alphas, world), parts=own, batches=len(of_weights))
    names = " + ".join(f"{len(images)} of {name}" for name, images in own.items())
    summary = (
        f"images: {names}; each epoch, another source is for the alphas only and the others for the weights"
    )
    return Levels(Level(weights, of_weights), Level(alphas, of_alphas), summary)


def divide_by_camera(
    train: Split, alpha_fraction: float, images_per_identity: int, seed: int
) -> BilevelSplit:
    """Divide the cameras of each identity between weights and alphas; the seed decides between equal choices.

    The alphas get the cameras whose images are closest to a share of alpha_fraction, with at least
    K = images_per_identity images on both sides. Identities for which there is no such choice go to the weights'
    side, for example those that one camera sees.

    Raises:
        DataError: no identity can be divided.
    """
    pairs = np.stack([train.identities, train.cameras], axis=1)
    views, view_of_image, sizes = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(views))
    order = order[np.argsort(views[order, 0], kind="stable")]
    for_alphas = np.zeros(len(views), dtype=bool)
    without_alphas = 0
    for cameras in np.split(order, np.flatnonzero(np.diff(views[order, 0])) + 1):
        for_alphas[cameras] = _choose_cameras(sizes[cameras].tolist(), alpha_fraction, images_per_identity)
        without_alphas += not for_alphas[cameras].any()
    if not for_alphas.any():
        raise DataError(
            f"{train.name}: no identity's cameras can be divided so that {images_per_identity} of its images are on "
            f"either side: lower data.images_per_identity, or use search.alphas_see: images or identities"
        )
    chosen = for_alphas[view_of_image.reshape(-1)]
    return BilevelSplit(
        train.select(~chosen, f"{train.name} (weights)"),
        train.select(chosen, f"{train.name} (alphas)"),
        without_alphas,
    )


def _choose_cameras(sizes: Sequence[int], fraction: float, at_least: int) -> list[bool]:
    """Choose cameras with about a fraction of the images; none if one side would have fewer than `at_least`."""
    total = sum(sizes)
    # Bit s of sums[c] is set if some of the first c cameras have s images together.
    sums = [1]
    for size in sizes:
        sums.append(sums[-1] | sums[-1] << size)
    possible = [count for count in range(at_least, total - at_least + 1) if sums[-1] >> count & 1]
    chosen = [False] * len(sizes)
    if not possible:
        return chosen
    rest = min(possible, key=lambda count: abs(count - fraction * total))
    for camera in reversed(range(len(sizes))):
        if not sums[camera] >> rest & 1:
            chosen[camera] = True
            rest -= sizes[camera]
    return chosen


def divide_by_identity(
    train: Split, alpha_fraction: float, images_per_identity: int, seed: int
) -> BilevelSplit:
    """Give the levels identities of their own and some in common (MSINet, arXiv 2303.07065).

    Of the identities, in an order that the seed decides, the first fifth trains the weights only and the last two
    fifths train the alphas only. The images of the others are divided as by `bilevel`.

    Raises:
        DataError: no identity in common has enough images for both levels.
    """
    identities = np.random.default_rng(seed).permutation(np.unique(train.identities))
    ends = [round(len(identities) / 5), len(identities) - round(2 * len(identities) / 5)]
    of_weights, common, of_alphas = (
        train.select(np.isin(train.identities, part)) for part in np.split(identities, ends)
    )
    divided = bilevel(common, alpha_fraction, images_per_identity, seed)
    return BilevelSplit(
        join([of_weights, divided.weights], f"{train.name} (weights)"),
        join([divided.alphas, of_alphas], f"{train.name} (alphas)"),
        divided.identities_without_alphas,
    )


#: How `search.alphas_see` divides the images, by its value; domains are not divided but take turns.
DIVISIONS = {"images": bilevel, "cameras": divide_by_camera, "identities": divide_by_identity}


def label(identities: npt.NDArray[np.int64], known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number identities (N,): known ones, which are sorted, from 0 on, and all others after them."""
    order = np.concatenate([known, np.setdiff1d(identities, known)])
    by_number = np.argsort(order)
    return by_number[np.searchsorted(order, identities, sorter=by_number)]
