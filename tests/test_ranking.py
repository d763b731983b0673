from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.data.records import JUNK
from autoreid.errors import RunError
from autoreid.evaluation import evaluate_retrieval

RANKING_DATA = Path(__file__).parent / "data" / "ranking"
RANKS = (1, 2, 5, 10, 20, 50, 1000)


def brute_force(distance, query_ids, gallery_ids, query_cameras, gallery_cameras):
    """mAP, CMC, mINP and valid queries from their definitions, one query and one image at a time."""
    precisions, firsts, penalties = [], [], []
    for q in range(len(query_ids)):
        ranking = []
        for g in sorted(range(len(gallery_ids)), key=lambda g: (distance[q][g], g)):
            same = gallery_ids[g] == query_ids[q]
            if gallery_ids[g] == JUNK or (same and gallery_cameras[g] == query_cameras[q]):
                continue
            ranking.append(same)
        match_ranks = [rank for rank, match in enumerate(ranking, start=1) if match]
        if not match_ranks:
            continue
        precisions.append(sum(n / rank for n, rank in enumerate(match_ranks, start=1)) / len(match_ranks))
        firsts.append(match_ranks[0])
        penalties.append(len(match_ranks) / match_ranks[-1])
    if not firsts:
        return None
    cmc = {k: sum(first <= k for first in firsts) / len(firsts) for k in RANKS}
    return sum(precisions) / len(firsts), cmc, sum(penalties) / len(firsts), len(firsts)


@st.composite
def retrieval_problems(draw):
    """Few identities and cameras and tiny integer features, so that ties and junk abound."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    Q, G, D = draw(st.integers(1, 150)), draw(st.integers(1, 40)), draw(st.integers(1, 3))
    identities, cameras = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    query, gallery = rng.integers(-1, 2, (Q, D)), rng.integers(-1, 2, (G, D))
    ids = [rng.integers(JUNK, identities, n) for n in (Q, G)]
    return (
        query.astype(np.float32),
        gallery.astype(np.float32),
        *ids,
        *(rng.integers(0, cameras, n) for n in (Q, G)),
    )


@settings(max_examples=150, deadline=None)
@given(retrieval_problems())
def test_euclidean_agrees_with_the_definitions(problem):
    query, gallery, *numbers = problem
    distance = [[float(((q - g) ** 2).sum()) for g in gallery] for q in query]
    expected = brute_force(distance, *numbers)
    if expected is None:
        with pytest.raises(RunError, match="has a match"):
            evaluate_retrieval(*problem, ranks=RANKS)
        return
    result = evaluate_retrieval(*problem, ranks=RANKS)
    assert result.map == pytest.approx(expected[0], abs=1e-12)
    assert result.cmc == pytest.approx(expected[1], abs=1e-12)
    assert result.minp == pytest.approx(expected[2], abs=1e-12)
    assert (result.valid_queries, result.queries) == (expected[3], len(query))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_agrees_with_recorded_figures_on_tied_distances(metric):
    """The figures were computed by fast-reid's Python evaluation with a stable sort."""
    expected = json.loads((RANKING_DATA / "ties.json").read_text())[metric]
    with np.load(RANKING_DATA / "ties.npz") as data:
        names = ["query_features", "gallery_features", "query_ids", "gallery_ids"]
        arrays = [data[name] for name in [*names, "query_cameras", "gallery_cameras"]]
    result = evaluate_retrieval(*arrays, metric=metric, ranks=range(1, 51))
    assert result.map == pytest.approx(expected["map"], abs=1e-12)
    assert result.minp == pytest.approx(expected["minp"], abs=1e-12)
    assert list(result.cmc.values()) == pytest.approx(expected["cmc"], abs=1e-6)
    assert result.valid_queries == expected["valid_queries"]


def test_cosine_ignores_length_and_numpy_equals_torch():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(30, 8)), rng.normal(size=(80, 8))
    numbers = [rng.integers(0, 6, n) for n in (30, 80)] + [rng.integers(0, 3, n) for n in (30, 80)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    expected = brute_force((1 - unit[0] @ unit[1].T).tolist(), *numbers)
    stretched = gallery * rng.uniform(0.1, 10, (80, 1))
    tensors = [torch.as_tensor(x) for x in (query, stretched, *numbers)]
    result = evaluate_retrieval(*tensors, metric="cosine", ranks=RANKS)
    assert result == evaluate_retrieval(query, stretched, *numbers, metric="cosine", ranks=RANKS)
    assert (result.map, result.minp) == pytest.approx((expected[0], expected[2]), abs=1e-12)
    assert result.cmc == pytest.approx(expected[1], abs=1e-12)


def small_problem():
    features = np.eye(3, dtype=np.float32)
    ids = np.array([1, 2, 3])
    return [features, features.copy(), ids, ids.copy(), np.zeros(3, np.int64), np.ones(3, np.int64)]


def test_features_that_are_not_finite_are_counted_by_side():
    problem = small_problem()
    problem[0][:2, 0] = np.nan
    problem[1][2, 1] = np.inf
    with pytest.raises(RunError, match="2 query rows and 1 gallery rows"):
        evaluate_retrieval(*problem)


@pytest.mark.parametrize("which", range(6))
def test_shapes_that_do_not_fit_are_refused(which):
    problem = small_problem()
    problem[which] = problem[which][..., :2] if which < 2 else problem[which][:2]
    with pytest.raises(ValueError, match="must be"):
        evaluate_retrieval(*problem)


def test_unknown_metric_and_empty_sets_are_refused():
    with pytest.raises(ValueError, match="manhattan"):
        evaluate_retrieval(*small_problem(), metric="manhattan")
    problem = small_problem()
    with pytest.raises(RunError, match="none of the 0 queries"):
        evaluate_retrieval(problem[0][:0], problem[1], problem[2][:0], problem[3], problem[4][:0], problem[5])
    with pytest.raises(RunError, match="none of the 3 queries"):
        evaluate_retrieval(problem[0], problem[1][:0], problem[2], problem[3][:0], problem[4], problem[5][:0])
