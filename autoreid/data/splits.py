"""Splits of the training images for a search.

`hold_out` sets whole identities aside, to measure retrieval on people that the search has not seen; `bilevel`
divides the remaining images between the two levels of DARTS (arXiv 1806.09055): weights are trained on one
part, alphas on the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoreid.data.records import Split
from autoreid.errors import ConfigError, DataError


def hold_out(
    train: Split, fraction: float, seed: int, keep_same_camera: bool = False
) -> tuple[Split, Split, Split]:
    """Set a fraction of the identities aside as queries and gallery, chosen by the seed.

    The number of identities is rounded, and at least 2 unless the fraction is 0. Only identities seen by two or
    more cameras are chosen, because others cannot be retrieved. For each camera of an identity, one image
    becomes a query and the rest gallery. A query without a match in the gallery (same identity, another camera)
    is moved to the gallery; each held-out identity keeps at least one query.

    Args:
        keep_same_camera: a match may be from the query's camera, so an identity needs two images, from any cameras.

    Returns:
        The remaining training images, the queries and the gallery, each in the order of `train`.

    Raises:
        ConfigError: the fraction is not in [0, 1).
        DataError: too few identities are seen by two cameras, or none would be left for training.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"held-out fraction {fraction}: must be at least 0 and less than 1")
    rng = np.random.default_rng(seed)
    chosen = np.isin(train.identities, _choose_identities(train, fraction, rng, keep_same_camera))
    held = np.flatnonzero(chosen)
    is_query = _choose_queries(train.identities[held], train.cameras[held], rng, keep_same_camera)
    return (
        train.select(~chosen),
        train.select(held[is_query], "held-out query"),
        train.select(held[~is_query], "held-out gallery"),
    )


#: What an identity needs so that it can be held out, by `keep_same_camera`.
_SEEN_TWICE = {
    False: "are seen by two cameras or more (evaluation.keep_same_camera=true also holds others out)",
    True: "have two images or more",
}


def _choose_identities(
    train: Split, fraction: float, rng: np.random.Generator, keep_same_camera: bool
) -> npt.NDArray[np.int64]:
    pairs = np.stack([train.identities, train.cameras], axis=1)
    views = pairs if keep_same_camera else np.unique(pairs, axis=0)
    identities, num_views = np.unique(views[:, 0], return_counts=True)
    eligible = identities[num_views >= 2]
    wanted = max(2, round(fraction * len(identities))) if fraction else 0
    if wanted > len(eligible) or (wanted and wanted >= len(identities)):
        raise DataError(
            f"{train.name}: holding out {wanted} of {len(identities)} identities (fraction {fraction}) is not"
            f" possible: {len(eligible)} {_SEEN_TWICE[keep_same_camera]}, and at least one must be left for training"
        )
    return rng.choice(eligible, wanted, replace=False)


def _choose_queries(
    identities: npt.NDArray[np.int64],
    cameras: npt.NDArray[np.int64],
    rng: np.random.Generator,
    keep_same_camera: bool,
) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: which images are queries; the others are the gallery."""
    order = rng.permutation(len(identities))
    is_query = np.zeros(len(identities), dtype=bool)
    if not len(identities):
        return is_query
    _, person = np.unique(identities, return_inverse=True)
    _, view = np.unique(np.stack([person, cameras], axis=1), axis=0, return_inverse=True)
    view = view.reshape(-1)
    _, first = np.unique(view[order], return_index=True)
    is_query[order[first]] = True
    # If an identity has one image per camera, its gallery would be empty: move one of its queries there.
    without_gallery = np.bincount(person, ~is_query) == 0
    _, first = np.unique(person[order], return_index=True)
    is_query[order[first[without_gallery]]] = False
    if keep_same_camera:
        return is_query
    # If all gallery images of an identity are from one camera, that camera's query has no match.
    from_other_cameras = np.bincount(person, ~is_query)[person] - np.bincount(view, ~is_query)[view]
    return is_query & (from_other_cameras > 0)


@dataclass(frozen=True)
class BilevelSplit:
    """Training images divided between the two levels; no image is in both.

    Attributes:
        weights: the images for training the weights.
        alphas: the images for training the alphas.
        identities_without_alphas: number of identities that have too few images and are only in `weights`.
    """

    weights: Split
    alphas: Split
    identities_without_alphas: int


def bilevel(train: Split, alpha_fraction: float, images_per_identity: int, seed: int) -> BilevelSplit:
    """Divide each identity's images between weights and alphas, chosen by the seed.

    Of an identity's n images, alpha_fraction * n are for the alphas, rounded and clipped so that both sides get
    at least K = images_per_identity. Identities with fewer than 2 K images are used for the weights only.

    Raises:
        ConfigError: alpha_fraction is not in (0, 1), or images_per_identity not positive.
        DataError: no identity has 2 K images.
    """
    if not 0 < alpha_fraction < 1:
        raise ConfigError(f"alpha fraction {alpha_fraction}: must be more than 0 and less than 1")
    K = images_per_identity
    if K < 1:
        raise ConfigError(f"images per identity {K}: must be at least 1")
    _, first, counts = np.unique(np.sort(train.identities), return_index=True, return_counts=True)
    enough = counts >= 2 * K
    if not enough.any():
        raise DataError(
            f"{train.name}: no identity has {2 * K} images, {K} for the weights and {K} for the alphas; the"
            f" largest has {counts.max(initial=0)}: reduce data.images_per_identity"
        )
    share = np.rint(alpha_fraction * counts).astype(np.int64)
    share = np.where(enough, np.minimum(np.maximum(share, K), counts - K), 0)
    # Each identity's images, shuffled; the first ones are for the alphas.
    shuffled = np.lexsort((np.random.default_rng(seed).random(len(train)), train.identities))
    rank = np.arange(len(train)) - np.repeat(first, counts)
    for_alphas = np.zeros(len(train), dtype=bool)
    for_alphas[shuffled] = rank < np.repeat(share, counts)
    return BilevelSplit(
        train.select(~for_alphas, f"{train.name} (weights)"),
        train.select(for_alphas, f"{train.name} (alphas)"),
        int(np.count_nonzero(~enough)),
    )
