"""Time and peak memory of k-reciprocal re-ranking and evaluation, compared with an implementation with dense matrices.

python benchmarks/reranking.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autoreid.evaluation import RetrievalResult, evaluate_distances, rerank
from benchmarks.ranking import (
    ARBITRARY,
    DIMENSION,
    TRAINED,
    Floats,
    make_problem,
    peak_megabytes,
    plain_distances,
    timed,
)

K1, K2, LAMBDA = 20, 6, 0.3


class Size(NamedTuple):
    """The size of a data set, the noise of its features, and how it is measured."""

    queries: int
    gallery: int
    identities: int
    noise: float
    repeats: int
    plain: bool
    peers: str


SIZES = {
    "an eighth": Size(421, 1_989, 94, TRAINED, 3, True, ""),
    "Market-1501": Size(3_368, 15_913, 750, TRAINED, 1, True, "torchreid 94.7 s, 8.4 GB"),
    "Market-1501, arbitrary": Size(3_368, 15_913, 750, ARBITRARY, 1, False, "the same"),
}
QUICK = ("an eighth",)


def evaluate_reranked(*problem: Any) -> RetrievalResult:
    """Re-rank and evaluate; see `Problem` for the arguments."""
    query, gallery, *numbers = problem
    return evaluate_distances(rerank(query, gallery, K1, K2, LAMBDA), *numbers)


def evaluate_plain(*problem: Any) -> RetrievalResult:
    """Re-rank and evaluate with `plain_reranking`."""
    query, gallery, *numbers = problem
    return evaluate_distances(plain_reranking(query, gallery), *numbers)


def reciprocal(order: npt.NDArray[np.int32], i: int, k: int) -> npt.NDArray[np.int32]:
    """Return the images among the k + 1 nearest of image i that have i among their k + 1 nearest."""
    near = order[i, : k + 1]
    return near[(order[near, : k + 1] == i).any(1)]


def plain_encoding(original: Floats, order: npt.NDArray[np.int32]) -> Floats:
    """Return the dense weights (N, N) of the expanded k-reciprocal neighbours of every image."""
    encoding = np.zeros_like(original)
    for i in range(len(original)):
        near = reciprocal(order, i, K1)
        expanded = [near]
        for candidate in near:
            neighbours = reciprocal(order, candidate, round(K1 / 2))
            if len(np.intersect1d(neighbours, near)) > 2 / 3 * len(neighbours):
                expanded.append(neighbours)
        members = np.unique(np.concatenate(expanded))
        weights = np.exp(-original[i, members])
        encoding[i, members] = weights / weights.sum()
    return encoding


def plain_reranking(query: Floats, gallery: Floats) -> Floats:
    """Return the re-ranked distances (Q, G), computed as in most implementations, with dense N × N matrices."""
    images = np.concatenate([query, gallery])
    original = plain_distances(images, images) ** 2
    original /= original.max(1, keepdims=True)
    order = np.empty(original.shape, np.int32)
    for i, row in enumerate(original):
        order[i] = row.argsort(kind="stable")
    encoding = plain_encoding(original, order)
    Q = len(query)
    original = original[:Q, Q:].copy()
    encoding = np.stack([encoding[near].mean(0) for near in order[:, :K2]])
    holders = [np.flatnonzero(column) for column in encoding.T]
    result = np.empty_like(original)
    for q in range(Q):
        shared = np.zeros(len(images), np.float32)
        for column in np.flatnonzero(encoding[q]):
            shared[holders[column]] += np.minimum(encoding[q, column], encoding[holders[column], column])
        jaccard = 1 - shared[Q:] / (2 - shared[Q:])
        result[q] = (1 - LAMBDA) * jaccard + LAMBDA * original[q]
    return result


def measure(size: Size) -> dict[str, Any]:
    """Return the seconds of the package, and of the baseline if `size.plain` is true."""
    problem = make_problem(*size[:4])
    result = evaluate_reranked(*problem)
    ways = [evaluate_reranked, evaluate_plain] if size.plain else [evaluate_reranked]
    runs = [[timed(way, *problem) for way in ways] for _ in range(size.repeats)]
    seconds = [float(x) for x in np.median([[second for second, _ in run] for run in runs], axis=0)]
    assert all(abs(other.map - result.map) < 1e-5 for _, other in runs[0])
    row = {"queries": size.queries, "gallery": size.gallery, "map": result.map}
    if size.plain:
        row |= {"plain_seconds": seconds[1], "ratio": seconds[0] / seconds[1]}
    return row | {"seconds": seconds[0]}


def main() -> None:
    """Measure, and print a table or a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only an eighth of the size of Market-1501")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    names = QUICK if arguments.quick else tuple(SIZES)
    megabytes = {name: peak_megabytes(evaluate_reranked, *SIZES[name][:4]) for name in names}
    results = {name: measure(SIZES[name]) | {"megabytes": megabytes[name]} for name in names}
    versions = {"torch": torch.__version__, "numpy": np.__version__, "threads": torch.get_num_threads()}
    if arguments.json:
        print(json.dumps({"benchmark": "reranking", **versions, "sizes": results}))
        return
    print(f"D = {DIMENSION}, k1 {K1}, k2 {K2}, lambda {LAMBDA}; {versions}")
    print(f"{'':24}{'mAP':>7}{'re-rank and score':>19}{'peak':>9}{'plain':>10}{'ratio':>7}  published")
    for name, row in results.items():
        print(f"{name:24}{row['map']:7.3f}{row['seconds']:17.2f} s{row['megabytes']:6.0f} MB", end="")
        if "ratio" in row:
            print(f"{row['plain_seconds']:8.1f} s{row['ratio']:7.3f}", end="")
        print(f"  {SIZES[name].peers}")


if __name__ == "__main__":
    main()
