"""Whether a data set can be evaluated: it needs queries, a gallery and matches between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from autoreid.config import Data
from autoreid.data.datasets import read_folder
from autoreid.data.datasets.market1501 import read_multi_query
from autoreid.data.images import prepare_images
from autoreid.data.overlap import copied_queries
from autoreid.data.records import JUNK, ReidDataset, Split, sightings
from autoreid.distributed import World, on_main
from autoreid.errors import DataError

_SAME_CAMERA = (
    "if people are seen by one camera only, set evaluation.keep_same_camera=true (evaluate: --keep-same-camera), or "
    "give each image a camera of its own in images.csv"
)


def read_targets(
    paths: Mapping[str, Path],
    keep_same_camera: bool,
    multi_query: bool,
    on_broken_image: Literal["error", "skip"],
    world: World,
) -> tuple[dict[str, ReidDataset], tuple[str, ...]]:
    """Read data sets and check that they can be evaluated, before anything is computed; all ranks call it together.

    Args:
        paths: the folder of each data set, by name.
        multi_query: the queries of the data sets are the images that are merged, see `read_multi_query`.
        on_broken_image: "skip" decodes all images and leaves out the broken ones.

    Returns:
        The data sets by name, and warnings.

    Raises:
        DataError: a path is not the folder of a data set, or see `check_target`.
    """
    targets = on_main(
        lambda: {name: _read(path, name, keep_same_camera, multi_query) for name, path in paths.items()}
    )
    notes = [note for target in targets.values() for note in target.notes]
    if on_broken_image == "skip":
        data = Data(root=Path(), cache=None, on_broken_image="skip", height=1, width=1)
        splits = {f"{name}-{part.name}": part for name, target in targets.items() for part in _parts(target)}
        images = prepare_images(data, splits, world)
        targets = {name: images.readable_dataset(target) for name, target in targets.items()}
        notes += images.notes
    for target in targets.values():
        notes += on_main(partial(check_target, target, keep_same_camera, multi_query))
    return targets, tuple(notes)


def check_target_folder(
    path: Path, name: str, keep_same_camera: bool, multi_query: bool = False
) -> ReidDataset:
    """Return a data set; raise a DataError unless it can be evaluated, as `read_targets` does."""
    target = _read(path, name, keep_same_camera, multi_query)
    check_target(target, keep_same_camera, multi_query)
    return target


def _parts(target: ReidDataset) -> tuple[Split, Split]:
    return target.query, target.gallery


def _read(path: Path, name: str, keep_same_camera: bool, multi_query: bool) -> ReidDataset:
    target = read_folder(path, name)
    if multi_query:
        target = replace(target, query=read_multi_query(path, target.query))
    copies = copied_queries(target) if keep_same_camera else ()
    return replace(target, notes=target.notes + copies)


def check_target(target: ReidDataset, keep_same_camera: bool, multi_query: bool = False) -> tuple[str, ...]:
    """Check that a data set can be evaluated; returns a warning if some queries have no match.

    Args:
        keep_same_camera: a match may be from the query's camera.
        multi_query: the queries of the same identity and camera count as one.

    Raises:
        DataError: there are no queries or no gallery images, or no query has a match.
    """
    for name, split in (("queries", target.query), ("gallery images", target.gallery)):
        if not len(split):
            raise DataError(
                f"{target.name}: has no {name}, so it cannot be evaluated; choose another data set, or name the images "
                f"to search for and to search in as splits query and gallery"
            )
    if multi_query:
        first, _ = sightings(target.query.identities, target.query.cameras)
        target = replace(target, query=target.query.select(first))
    where = "" if keep_same_camera else " from another camera"
    alone = _without_match(target.query, target.gallery, keep_same_camera)
    if len(alone) == len(target.query):
        remedy = "" if keep_same_camera else f"; {_SAME_CAMERA}"
        raise DataError(f"{target.name}: no query has a gallery image of its identity{where}{remedy}")
    if not alone:
        return ()
    return (
        f"{target.name}: {len(alone)} of {len(target.query)} queries are ignored, because the gallery has no image of "
        f"their identity{where}, such as {alone[0]}",
    )


def _without_match(query: Split, gallery: Split, keep_same_camera: bool) -> list[str]:
    """Return the paths of the queries without a match; an image is no match of itself."""
    searched = gallery.select(np.isin(gallery.identities, query.identities) & (gallery.identities != JUNK))
    images = Counter(searched.identities.tolist())
    if keep_same_camera:
        own = set(searched.paths) - {""}  # feature files may have no paths
        ignored = [int(path in own) for path in query.paths]
    else:
        views = Counter(zip(searched.identities.tolist(), searched.cameras.tolist(), strict=True))
        ignored = [
            views[view] for view in zip(query.identities.tolist(), query.cameras.tolist(), strict=True)
        ]
    found = zip(query.paths, query.identities.tolist(), ignored, strict=True)
    return [path for path, person, count in found if images[person] == count]
