"""Extract the features of a split's images, distributed over the ranks, and store features in files.

Shape letters: N images, B batch, D embedding.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoreid.data.loaders import Batch
from autoreid.data.records import Split
from autoreid.distributed import World, gather, gather_objects, on_main
from autoreid.errors import DataError, RunError
from autoreid.evaluation.protocol import own_images
from autoreid.evaluation.ranking import RetrievalResult, evaluate_retrieval

Embed = Callable[[Tensor], Tensor]
#: (split, indices) -> batches of these images; a batch's labels are the indices of its images.
Load = Callable[[Split, npt.NDArray[np.int64]], Iterable[Batch]]

_KEYS = ("features", "identities", "cameras", "paths")


@dataclass(frozen=True)
class FeatureSet:
    """The features, identities and cameras of N images.

    Attributes:
        features: (N, D) float32.
        identities: (N,) int64.
        cameras: (N,) int64.
        paths: (N,) str; empty strings if the image files are unknown.
    """

    features: npt.NDArray[np.float32]
    identities: npt.NDArray[np.int64]
    cameras: npt.NDArray[np.int64]
    paths: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.features)

    def select(self, chosen: npt.NDArray[np.int64]) -> FeatureSet:
        """Return the images at the chosen indices, in that order."""
        return FeatureSet(*(getattr(self, key)[chosen] for key in _KEYS))

    def split(self, name: str) -> Split:
        """Return the images without their features."""
        return Split(name, self.paths.astype(object), self.identities, self.cameras)

    @classmethod
    def of(cls, split: Split, features: Tensor) -> FeatureSet:
        """Combine a split with the (N, D) features of its images."""
        return cls(
            features.float().cpu().numpy(), split.identities, split.cameras, split.paths.astype(np.str_)
        )

    def save(self, path: Path) -> None:
        """Write a .npz file with the arrays `features`, `identities`, `cameras` and `paths`.

        Raises:
            RunError: the file cannot be written; an existing file is not changed.
        """
        # Written directly to the file: the features may fill half of the memory.
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, **{key: getattr(self, key) for key in _KEYS})
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RunError(f"{path}: cannot write the features: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path) -> FeatureSet:
        """Read a .npz file in the format of `save`, written by any program; pickled objects are refused.

        Features may have any real type, identities and cameras any integer type. `paths` is optional.

        Raises:
            DataError: the file cannot be read, or an array is missing, not finite, or of a wrong shape or type.
        """
        arrays = _read_arrays(path)
        for key in _KEYS[:3]:
            if key not in arrays:
                raise DataError(
                    f"{path}: no array {key!r}; expected {', '.join(_KEYS[:3])} and optionally paths"
                )
        with np.errstate(over="ignore"):
            features = _typed(path, "features", arrays["features"], "fiu", np.float32)
        if features.ndim != 2:
            raise DataError(f"{path}: features has shape {features.shape}: must be (images, dimensions)")
        broken = np.count_nonzero(~np.isfinite(features).all(1))
        if broken:
            raise DataError(f"{path}: features: NaN or infinity in {broken} of {len(features)} rows")
        identities = _typed(path, "identities", arrays["identities"], "iu", np.int64)
        cameras = _typed(path, "cameras", arrays["cameras"], "iu", np.int64)
        unknown = np.full(len(features), "")
        paths = _typed(path, "paths", arrays.get("paths", unknown), "U", np.str_)
        for key, array in zip(_KEYS[1:], (identities, cameras, paths), strict=True):
            if array.shape != (len(features),):
                raise DataError(
                    f"{path}: {key} has shape {array.shape}: must be ({len(features)},), one entry per image"
                )
        return cls(features, identities, cameras, paths)


def _read_arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Return the known arrays that a .npz file contains."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataError(f"{path}: a single array; expected a .npz with {', '.join(_KEYS)}")
        with file:
            return {key: file[key] for key in _KEYS if key in file}
    except OSError as error:
        raise DataError(f"{path}: cannot read the features: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        # numpy assumes that any file of unknown format is a pickle.
        reason = "it contains Python objects" if "ickle" in str(error) else str(error)
        raise DataError(
            f"{path}: not a feature file ({reason}); expected a .npz with {', '.join(_KEYS)}"
        ) from error


def _typed(
    path: Path, key: str, array: npt.NDArray[np.generic], kinds: str, dtype: type[np.generic]
) -> npt.NDArray:
    if array.dtype.kind not in kinds:
        words = {"f": "numbers", "i": "integers", "U": "text (numpy's unicode)"}[kinds[0]]
        raise DataError(f"{path}: {key} has type {array.dtype}: must be {words}")
    if array.dtype == np.uint64 and dtype == np.int64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"{path}: {key} has the number {array.max()}: must fit into 63 bits")
    return array.astype(dtype, copy=False)


def flip_test(embed: Embed) -> Embed:
    """Return an embedding function that averages the features of an image and its mirror image."""

    def embed_both(images: Tensor) -> Tensor:
        return (embed(images) + embed(images.flip(3))) / 2

    return embed_both


@torch.inference_mode()
def extract_features(embed: Embed, split: Split, load: Load, world: World) -> Tensor:
    """Return the embeddings of a split's images in order, on every rank.

    Each image is embedded once, by one rank. The host does not wait for the device between batches.

    Returns:
        (N, D) float32 on this rank's device.

    Raises:
        DataError: an image could not be read; raised on every rank, whichever rank failed.
    """
    N, size = len(split), world.size
    longest = -(-N // size)
    share: Tensor | None = None
    broken: str | None = None
    for batch in load(split, np.arange(world.rank, N, size)):
        broken = broken or batch.broken
        images, labels, _ = batch.to(world.device)
        features = embed(images).float()
        if share is None:
            # NaN, so that a row that no batch fills cannot be mistaken for a feature.
            share = features.new_full((longest, features.shape[1]), torch.nan)
        share.index_copy_(0, labels // size, features)
    found = gather_objects((broken, None if share is None else share.shape[1]))
    for message, _ in found:
        if message:
            raise DataError(message)
    D = max((dimensions for _, dimensions in found if dimensions is not None), default=0)
    if share is None:  # fewer images than ranks
        share = torch.full((longest, D), torch.nan, device=world.device)
    # Image n is in row n // size of rank n % size.
    return gather(share).view(size, longest, D).transpose(0, 1).reshape(-1, D)[:N]


def measure_retrieval(
    embed: Embed,
    query: Split,
    gallery: Split,
    load: Load,
    world: World,
    metric: Literal["euclidean", "cosine"],
    keep_same_camera: bool = False,
) -> RetrievalResult:
    """Return mAP, CMC and mINP of an embedding on query and gallery; the same on every rank.

    An image that is query and gallery at once is not its own match; see `evaluate_retrieval` for `keep_same_camera`.
    """
    query_features = extract_features(embed, query, load, world)
    gallery_features = extract_features(embed, gallery, load, world)
    return on_main(
        lambda: evaluate_retrieval(
            query_features,
            gallery_features,
            query.identities,
            gallery.identities,
            query.cameras,
            gallery.cameras,
            metric,
            keep_same_camera=keep_same_camera,
            own=own_images(query.paths, gallery.paths),
        )
    )
