"""Time and peak memory of mAP, CMC and mINP from features, compared with a full sort of the full distance matrix.

python benchmarks/ranking.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from autoreid.evaluation import RetrievalResult, evaluate_distances, evaluate_retrieval

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

DIMENSION, CAMERAS, RANKS = 512, 6, 20
#: Noise around the centre of an identity: for features like those of a trained network, and for arbitrary features.
TRAINED, ARBITRARY = 2.0, 100.0


class Size(NamedTuple):
    """The size of a data set, the noise of its features, and how it is measured."""

    queries: int
    gallery: int
    identities: int
    noise: float
    repeats: int
    baseline_queries: int
    peers: str


SIZES = {
    "Market-1501": Size(3_368, 15_913, 750, TRAINED, 5, 3_368, "torchreid 5.75 s, fast-reid 3.76 s"),
    "Market-1501, arbitrary": Size(3_368, 15_913, 750, ARBITRARY, 5, 3_368, "the same"),
    "MSMT17": Size(11_659, 82_161, 3_060, TRAINED, 3, 600, "fast-reid 104.5 s"),
    "Market-1501 + 500 k": Size(3_368, 515_913, 750, TRAINED, 1, 0, ""),
}
QUICK = ("Market-1501",)


class Problem(NamedTuple):
    """The arguments of `evaluate_retrieval`."""

    query_features: Floats
    gallery_features: Floats
    query_ids: Ints
    gallery_ids: Ints
    query_cameras: Ints
    gallery_cameras: Ints


def make_problem(queries: int, gallery: int, identities: int, noise: float) -> Problem:
    """Return unit features around one centre for each identity; images beyond 100 per identity are distractors."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((identities, DIMENSION), dtype=np.float32)
    ids = [rng.integers(0, identities, n) for n in (queries, gallery)]
    ids[1][100 * identities :] = identities + np.arange(max(0, gallery - 100 * identities))
    features = [np.empty((n, DIMENSION), np.float32) for n in (queries, gallery)]
    for side, identity in zip(features, ids, strict=True):
        for start in range(0, len(side), 1000):  # in pieces, so that this does not determine the peak memory
            part = slice(start, start + 1000)
            piece = noise * rng.standard_normal(side[part].shape, dtype=np.float32)
            piece += centres[identity[part] % identities] * (identity[part, None] < identities)
            side[part] = piece / np.linalg.norm(piece, axis=1, keepdims=True)
    cameras = [rng.integers(0, CAMERAS, n) for n in (queries, gallery)]
    return Problem(features[0], features[1], ids[0], ids[1], cameras[0], cameras[1])


def plain_distances(query: Floats, gallery: Floats) -> Floats:
    """Return the squared Euclidean distances (Q, G)."""
    distances = (query**2).sum(1)[:, None] + (gallery**2).sum(1)
    distances -= 2 * query @ gallery.T
    return distances


def plain_evaluation(distances: Floats, *numbers: Ints) -> tuple[float, float]:
    """Compute mAP and rank-1 as most evaluators do: sort every row in full, then loop over queries."""
    query_ids, gallery_ids, query_cameras, gallery_cameras = numbers
    order = np.argsort(distances, axis=1, kind="stable")
    precisions, curves = [], []
    for q in range(len(distances)):
        ranked = order[q]
        same = gallery_ids[ranked] == query_ids[q]
        hits = same[~(same & (gallery_cameras[ranked] == query_cameras[q]))]
        if hits.any():
            found = hits.cumsum()
            curves.append(np.minimum(found[:RANKS], 1))
            precisions.append((found / np.arange(1, len(hits) + 1) * hits).sum() / hits.sum())
    return float(np.mean(precisions)), float(np.mean(curves, axis=0)[0])


def plain_retrieval(query: Floats, gallery: Floats, *numbers: Ints) -> tuple[float, float]:
    """Compute mAP and rank-1 from features with `plain_evaluation`."""
    return plain_evaluation(plain_distances(query, gallery), *numbers)


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def peak_megabytes(function: Callable[..., Any], *size: float) -> float:
    """Return the peak memory of a call without its inputs, measured in a separate process."""
    # A process inherits its parent's peak, so this must run before the parent allocates anything large.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (function, *size))


def _peak(function: Callable[..., Any], queries: int, *size: float) -> float:
    function(*make_problem(30, 200, 5, TRAINED))  # so that libraries are loaded
    problem = make_problem(queries, *size)  # type: ignore[arg-type]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function(*problem)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def interleaved(repeats: int, *calls: Callable[[], Any]) -> list[float]:
    """Return the median seconds of each call, over interleaved repetitions."""
    seconds = [[timed(call)[0] for call in calls] for _ in range(repeats)]
    return [float(x) for x in np.median(seconds, axis=0)]


def measure(size: Size, repeats: int) -> dict[str, Any]:
    """Return the seconds of the package and of the baseline, which gets only the first `baseline_queries` queries."""
    problem = make_problem(*size[:4])
    ours: RetrievalResult
    first, ours = timed(evaluate_retrieval, *problem)
    whole = [timed(evaluate_retrieval, *problem)[0] for _ in range(repeats - 1)] or [first]
    row: dict[str, Any] = {"queries": size.queries, "gallery": size.gallery, "map": ours.map}
    row["features_seconds"] = float(np.median(whole))
    n = size.baseline_queries
    if n:
        part = problem._replace(
            **{k: getattr(problem, k)[:n] for k in Problem._fields if k.startswith("query")}
        )
        distances = plain_distances(part.query_features, part.gallery_features)
        numbers = part[2:]
        row["ranking_seconds"], row["plain_ranking_seconds"] = interleaved(
            repeats,
            lambda: evaluate_distances(distances, *numbers),
            lambda: plain_evaluation(distances, *numbers),
        )
        del distances
        of_part, plain = interleaved(
            repeats, lambda: evaluate_retrieval(*part), lambda: plain_retrieval(*part)
        )
        assert abs(plain_retrieval(*part)[0] - evaluate_retrieval(*part).map) < 1e-6
        row |= {"plain_queries": n, "part_seconds": of_part, "plain_seconds": plain, "ratio": of_part / plain}
        row["ranking_ratio"] = row["ranking_seconds"] / row["plain_ranking_seconds"]
    return row


def main() -> None:
    """Measure, and print a table or a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the size of Market-1501, once")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    names = QUICK if arguments.quick else tuple(SIZES)
    megabytes = {name: peak_megabytes(evaluate_retrieval, *SIZES[name][:4]) for name in names}
    results = {name: measure(SIZES[name], 1 if arguments.quick else SIZES[name].repeats) for name in names}
    for name, row in results.items():
        row["features_megabytes"] = megabytes[name]
    versions = {"torch": torch.__version__, "numpy": np.__version__, "threads": torch.get_num_threads()}
    if arguments.json:
        print(json.dumps({"benchmark": "ranking", **versions, "sizes": results}))
        return
    print(f"D = {DIMENSION}; {versions}; plain: full matrix and full sort, for the stated number of queries")
    print(f"{'':24}{'mAP':>7}{'from features':>15}{'peak':>9}{'queries':>9}{'plain':>9}{'ratio':>7}", end="")
    print(f"{'ranking only':>14}{'plain':>9}{'ratio':>7}  published, from features")
    for name, row in results.items():
        print(f"{name:24}{row['map']:7.3f}{row['features_seconds']:13.2f} s", end="")
        print(f"{row['features_megabytes']:6.0f} MB", end="")
        if "ratio" in row:
            print(f"{row['plain_queries']:9}{row['plain_seconds']:7.2f} s{row['ratio']:7.3f}", end="")
            print(f"{row['ranking_seconds']:12.3f} s{row['plain_ranking_seconds']:7.2f} s", end="")
            print(f"{row['ranking_ratio']:7.3f}", end="")
        print(f"  {SIZES[name].peers}")


if __name__ == "__main__":
    main()
