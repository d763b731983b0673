"""Verification: how well a threshold on the distance separates pairs of the same person from those of two people.

The measures are exact over all pairs. Only the distances of positive pairs are held in memory, of which there are few;
the negative pairs are counted between them, in blocks.

Shape letters: q queries of a block, G gallery images, U different distances of positive pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoreid.errors import DataError
from autoreid.evaluation.protocol import Ints, Protocol
from autoreid.evaluation.ranking import Block, match_blocks

#: False positive rates at which the true positive rate is reported, ...
FALSE_POSITIVE_RATES = (1e-1, 1e-2, 1e-3, 1e-4)
#: ... if the rate allows at least this many negative pairs; with fewer, the result depends on a few images.
MIN_FALSE_POSITIVES = 10
#: Points of the curve for each power of ten of the false positive rate, and the lowest rate.
_POINTS, _LOWEST_RATE = 20, 1e-5


@dataclass(frozen=True)
class Roc:
    """How well a threshold separates positive from negative pairs.

    A pair is accepted if its distance is at most the threshold. The true positive rate (TPR) is the share of positive
    pairs that are accepted, the false positive rate (FPR) that of negative ones.

    Attributes:
        tpr: FPR -> highest TPR of all thresholds whose FPR is not higher. Rates for which there are too few negative
            pairs are left out.
        eer: equal error rate: the FPR where it equals one minus the TPR, interpolated linearly.
        auc: area under the curve: probability that a positive pair is closer than a negative one; ties count half.
        positives: number of positive pairs.
        negatives: number of negative pairs.
        curve: false positive rates and the TPR at each, for a plot.
    """

    tpr: dict[float, float]
    eer: float
    auc: float
    positives: int
    negatives: int
    curve: tuple[list[float], list[float]] = field(repr=False)


def measure_roc(blocks: Callable[[], Iterable[Tensor]], protocol: Protocol) -> Roc:
    """Measure all pairs of a query that has a match and a gallery image that counts for it.

    As in a ranking, junk and removed images do not count, see `Protocol`.

    Args:
        blocks: returns the distances in blocks (q, G), which have all queries in order; is called twice, and the second
            time the blocks are overwritten.

    Raises:
        ValueError: the shapes do not match.
        DataError: there are no positive or no negative pairs.
        DivergedError: a distance is NaN or infinite.
    """
    matches = [
        block.distances[torch.from_numpy(block.rows), torch.from_numpy(block.columns)].cpu()
        for block in match_blocks(blocks(), protocol)
    ]
    positive, counts = torch.cat(matches).unique(return_counts=True)
    if not len(positive):
        raise DataError(
            "no pair of a query and a gallery image shows the same person, so there is no ROC curve"
        )
    # Between the next smaller float and a distance, there is only the distance itself.
    edges = torch.stack([positive.nextafter(torch.tensor(-torch.inf)), positive], dim=1).flatten()
    between = np.zeros(len(edges) + 1, np.int64)
    for block in match_blocks(blocks(), protocol):
        between += _count_negatives(block, edges)
    negatives = int(between.sum())
    if not negatives:
        raise DataError(
            "all pairs of a query and a gallery image show the same person, so there is no ROC curve"
        )
    up_to = between[:-1].cumsum()
    return _summarise(counts.numpy(), up_to[::2], up_to[1::2], negatives)


def _count_negatives(block: Block, edges: Tensor) -> Ints:
    """Return how many negative pairs lie between sorted edges (2U): (2U + 1,), each with its upper edge."""
    distances = block.distances
    queries = torch.from_numpy(np.unique(block.rows))
    skipped = torch.zeros(distances.shape, dtype=torch.bool, device=distances.device)
    skipped[:, torch.from_numpy(block.junk)] = True
    for rows, columns in ((block.rows, block.columns), block.removed):
        skipped[torch.from_numpy(rows), torch.from_numpy(columns)] = True
    negative = distances[queries][~skipped[queries]]
    places = torch.bucketize(negative, edges.to(negative.device))
    return torch.bincount(places, minlength=len(edges) + 1).cpu().numpy()


def _summarise(counts: Ints, below: Ints, up_to: Ints, negatives: int) -> Roc:
    """Compute all measures.

    Args:
        counts: (U,) number of positive pairs at each distance, in ascending order of the distances.
        below: (U,) number of negative pairs that are closer.
        up_to: (U,) number of negative pairs that are at most as far.
    """
    positives = int(counts.sum())
    accepted = counts.cumsum()
    true_rate = np.concatenate([[0.0], accepted / positives])

    def allowed(rate: float) -> float:
        return rate * negatives * (1 + 1e-9)  # a margin for rounding: 0.29 * 100 is less than 29

    def tpr_at(rate: float) -> float:
        return float(true_rate[up_to.searchsorted(allowed(rate), side="right")])

    reported = [rate for rate in FALSE_POSITIVE_RATES if allowed(rate) >= MIN_FALSE_POSITIVES]
    lowest = min(1.0, max(_LOWEST_RATE, MIN_FALSE_POSITIVES / negatives))
    rates = np.geomspace(lowest, 1, 1 + round(-_POINTS * np.log10(lowest))).tolist()
    # The corners of the curve: it is horizontal between two distances of positive pairs, and rises at each.
    false = np.stack([below, up_to], axis=1).ravel() / negatives
    true = np.stack([true_rate[:-1], true_rate[1:]], axis=1).ravel()
    corners: tuple[npt.NDArray[np.float64], ...] = tuple(
        np.concatenate([[0.0], rate, [1.0]]) for rate in (false, true)
    )
    return Roc(
        {rate: tpr_at(rate) for rate in reported},
        float(np.interp(1.0, corners[0] + corners[1], corners[0])),
        float((counts * (negatives - (below + up_to) / 2)).sum() / (positives * negatives)),
        positives,
        negatives,
        (rates, [tpr_at(rate) for rate in rates]),
    )
