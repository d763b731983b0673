"""Embeds query and gallery, each rank its share of the images, and ranks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoreid.data.loaders import Batch
from autoreid.data.records import Split
from autoreid.distributed import World, gather_objects, on_main
from autoreid.errors import DataError
from autoreid.evaluation.ranking import RetrievalResult, evaluate_retrieval

#: (split, indices) -> batches of those images, whose labels are their indices.
Load = Callable[[Split, npt.NDArray[np.int64]], Iterable[Batch]]


@torch.inference_mode()
def extract_features(embed: Callable[[Tensor], Tensor], split: Split, load: Load, world: World) -> Tensor:
    """The embeddings of a split's images in order, (N, D) float32 on the CPU, on every rank.

    Each image is embedded by one rank, once: nothing is padded.

    Raises:
        DataError: on every rank, if an image could not be read on any.
    """
    mine = np.arange(world.rank, len(split), world.size)
    found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
    broken: str | None = None
    for batch in load(split, mine):
        broken = broken or batch.broken
        features = embed(batch.to(world.device).images)
        found.append((batch.labels.numpy(), features.float().cpu().numpy()))
    shares = gather_objects((found, broken))
    for _, message in shares:
        if message:
            raise DataError(message)
    pieces = [piece for share, _ in shares for piece in share]
    indices = np.concatenate([piece[0] for piece in pieces])
    return torch.from_numpy(np.concatenate([piece[1] for piece in pieces])[np.argsort(indices)])


def measure_retrieval(
    embed: Callable[[Tensor], Tensor],
    query: Split,
    gallery: Split,
    load: Load,
    world: World,
    metric: Literal["euclidean", "cosine"],
) -> RetrievalResult:
    """MAP and CMC of an embedding function on query and gallery; the same on every rank."""
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
