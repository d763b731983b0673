"""Embeds the images of a split, each rank its share, and keeps features in files.

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
from autoreid.evaluation.ranking import RetrievalResult, evaluate_retrieval

Embed = Callable[[Tensor], Tensor]
#: (split, indices) -> batches of those images, whose labels are their indices.
Load = Callable[[Split, npt.NDArray[np.int64]], Iterable[Batch]]

_KEYS = ("features", "identities", "cameras", "paths")


@dataclass(frozen=True)
class FeatureSet:
    """The features of N images and whom they show.

    Attributes:
        features: (N, D) float32.
        identities: (N,) int64.
        cameras: (N,) int64.
        paths: (N,) str; empty where the image files are not known.
    """

    features: npt.NDArray[np.float32]
    identities: npt.NDArray[np.int64]
    cameras: npt.NDArray[np.int64]
    paths: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.features)

    def select(self, chosen: npt.NDArray[np.int64]) -> FeatureSet:
        """The images at the chosen indices, in that order."""
        return FeatureSet(*(getattr(self, key)[chosen] for key in _KEYS))

    @classmethod
    def of(cls, split: Split, features: Tensor) -> FeatureSet:
        """The (N, D) features of a split's images."""
        return cls(
            features.float().cpu().numpy(), split.identities, split.cameras, split.paths.astype(np.str_)
        )

    def save(self, path: Path) -> None:
        """Writes a .npz with the arrays `features`, `identities`, `cameras` and `paths`.

        Raises:
            RunError: it cannot be written; an older file is as it was.
        """
        # Written piece by piece: the features may be half of the memory that there is.
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
        """Reads a .npz as `save` writes it, by this package or any other; never unpickles.

        Features may have any real type, identities and cameras any integer type. `paths` may be missing.

        Raises:
            DataError: the file cannot be read, or an array is missing, of a wrong shape or type, or not finite.
        """
        arrays = _read_arrays(path)
        for key in _KEYS[:3]:
            if key not in arrays:
                raise DataError(
                    f"{path}: no array {key!r}; expected {', '.join(_KEYS[:3])} and perhaps paths"
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
                    f"{path}: {key} has shape {array.shape}: must be ({len(features)},), one an image, as features"
                )
        return cls(features, identities, cameras, paths)


def _read_arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """The known arrays of a .npz that are there."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataError(f"{path}: a single array; expected a .npz with {', '.join(_KEYS)}")
        with file:
            return {key: file[key] for key in _KEYS if key in file}
    except OSError as error:
        raise DataError(f"{path}: cannot read the features: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        # numpy takes whatever it does not know for a pickle.
        reason = "objects in it" if "ickle" in str(error) else str(error)
        raise DataError(
            f"{path}: not a feature file ({reason}); expected a .npz with {', '.join(_KEYS)}"
        ) from error


def _typed(
    path: Path, key: str, array: npt.NDArray[np.generic], kinds: str, dtype: type[np.generic]
) -> npt.NDArray:
    if array.dtype.kind not in kinds:
        words = {"f": "numbers", "i": "integers", "U": "text (numpy's unicode)"}[kinds[0]]
        raise DataError(f"{path}: {key} is of type {array.dtype}: must be {words}")
    return array.astype(dtype, copy=False)


def flip_test(embed: Embed) -> Embed:
    """An embedding that is the mean of the features of an image and of its mirror image."""

    def embed_both(images: Tensor) -> Tensor:
        return (embed(images) + embed(images.flip(3))) / 2

    return embed_both


@torch.inference_mode()
def extract_features(embed: Embed, split: Split, load: Load, world: World) -> Tensor:
    """The embeddings of a split's images in order, (N, D) float32 on this rank's device, on every rank.

    Each image is embedded by one rank, once. The host does not wait for the device between batches.

    Raises:
        DataError: on every rank, if an image could not be read on any.
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
            # A row that no batch fills must not pass for a feature.
            share = features.new_full((longest, features.shape[1]), torch.nan)
        share.index_copy_(0, labels // size, features)
    found = gather_objects((broken, None if share is None else share.shape[1]))
    for message, _ in found:
        if message:
            raise DataError(message)
    D = max((dimensions for _, dimensions in found if dimensions is not None), default=0)
    if share is None:  # fewer images than ranks
        share = torch.full((longest, D), torch.nan, device=world.device)
    # The n-th image is in row n // size of rank n % size.
    return gather(share).view(size, longest, D).transpose(0, 1).reshape(-1, D)[:N]


def measure_retrieval(
    embed: Embed,
    query: Split,
    gallery: Split,
    load: Load,
    world: World,
    metric: Literal["euclidean", "cosine"],
) -> RetrievalResult:
    """Retrieval scores (mAP, CMC, mINP) of an embedding on query and gallery; the same on every rank."""
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
        )
    )
