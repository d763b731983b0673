from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.data.records import JUNK
from autoreid.errors import RunError
from autoreid.evaluation import distances as distances_module
from autoreid.evaluation import evaluate_distances, evaluate_retrieval, ranking
from autoreid.evaluation.distances import Distances
from autoreid.evaluation.protocol import Protocol

RANKING_DATA = Path(__file__).parent / "data" / "ranking"
RANKS = (1, 2, 5, 10, 20, 50, 1000)


def brute_force(distance, query_ids, gallery_ids, query_cameras, gallery_cameras):
    """Compute mAP, CMC, mINP and the number of valid queries from their definitions, one image at a time."""
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
    """Few identities and cameras and small integer features, so that there are many ties and much junk."""
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
        with pytest.raises(RunError, match="from another camera"):
            evaluate_retrieval(*problem, ranks=RANKS)
        return
    result = evaluate_retrieval(*problem, ranks=RANKS)
    assert result.map == pytest.approx(expected[0], abs=1e-12)
    assert result.cmc == pytest.approx(expected[1], abs=1e-12)
    assert result.minp == pytest.approx(expected[2], abs=1e-12)
    assert (result.valid_queries, result.queries) == (expected[3], len(query))


def recorded(name):
    """Arguments of `evaluate_retrieval`, re-ranked distances, and the recorded figures."""
    names = [
        "query_features",
        "gallery_features",
        "query_ids",
        "gallery_ids",
        "query_cameras",
        "gallery_cameras",
    ]
    with np.load(RANKING_DATA / f"{name}.npz") as data:
        problem = [data[key] for key in names]
        reranked = {key: data[key] for key in data if key.startswith("rerank")}
    return problem, reranked, json.loads((RANKING_DATA / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["basic", "ties"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_agrees_with_recorded_figures(name, metric):
    """The figures were computed by fast-reid's Python evaluation with a stable sort."""
    problem, _, figures = recorded(name)
    expected = figures[metric]
    result = evaluate_retrieval(*problem, metric=metric, ranks=range(1, 51))
    assert result.map == pytest.approx(expected["map"], abs=1e-12)
    assert result.minp == pytest.approx(expected["minp"], abs=1e-12)
    assert list(result.cmc.values()) == pytest.approx(expected["cmc"], abs=1e-6)
    assert result.valid_queries == expected["valid_queries"]
    precision = result.average_precision[~np.isnan(result.average_precision)]
    assert precision.tolist() == pytest.approx(expected["average_precision_of_valid_queries"], abs=1e-12)
    if name == "basic":  # with ties, the Cython figure depends on the processor
        assert result.map == pytest.approx(expected["torchreid_cython_map_unstable_sort_float32"], abs=5e-6)


def test_given_distances_agree_with_recorded_figures():
    problem, reranked, figures = recorded("basic")
    distances = reranked["rerank_k1_20_k2_6_l_0.3"]
    before = distances.copy()
    result = evaluate_distances(distances, *problem[2:])
    expected = figures["rerank_k1_20_k2_6_l_0.3"]
    assert (result.map, result.minp) == pytest.approx((expected["map"], expected["minp"]), abs=1e-12)
    assert np.array_equal(distances, before)
    assert evaluate_distances(iter(np.array_split(distances, 7)), *problem[2:]) == result


@st.composite
def large_galleries(draw):
    """Distances of few queries to many images, with few or many matches that are near or anywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    Q, G = draw(st.integers(1, 4)), draw(st.integers(200, 1500))
    ids = [rng.integers(JUNK, 3, Q), rng.integers(JUNK, draw(st.sampled_from([3, 40])), G)]
    values = draw(st.sampled_from([4, 1000, 2**23]))
    distances = rng.integers(0, values, (Q, G)).astype(np.float32)
    if draw(st.booleans()):
        distances[ids[0][:, None] == ids[1]] //= 64
    return distances, *ids, *(rng.integers(0, 3, n) for n in (Q, G))


@settings(max_examples=60, deadline=None)
@given(large_galleries(), st.sampled_from([0, 10_000]))
def test_given_distances_agree_with_the_definitions(problem, counted):
    """Whether ranks are sorted or counted."""
    expected = brute_force(*problem)
    if expected is None:
        with pytest.raises(RunError, match="from another camera"):
            evaluate_distances(*problem)
        return
    with mock.patch.multiple(ranking, COUNTED=counted, COUNTED_FROM=0):
        result = evaluate_distances(*problem, ranks=RANKS)
    assert (result.map, result.minp) == pytest.approx((expected[0], expected[2]), abs=1e-12)
    assert result.cmc == pytest.approx(expected[1], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(retrieval_problems())
def test_ranks_by_comparison_are_those_by_sorting(problem):
    """The code path of other devices, run on the CPU."""
    query, gallery, *numbers = problem
    protocol = Protocol(*numbers)
    for block in ranking.match_blocks(Distances(query, gallery).blocks(), protocol):
        if len(block.rows):
            assert np.array_equal(ranking._ranks_on_device(block), ranking.match_ranks(block))


def test_average_precision_is_of_each_query_and_the_size_of_blocks_does_not_matter(monkeypatch):
    problem, _, _ = recorded("ties")
    problem[2][5] = 10**6  # an identity that is not in the gallery
    result = evaluate_retrieval(*problem)
    assert np.isnan(result.average_precision[5])
    assert np.nanmean(result.average_precision) == pytest.approx(result.map, abs=1e-12)
    assert result.valid_queries == 199
    monkeypatch.setattr(distances_module, "BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(distances_module, "MIN_BLOCK_ROWS", 7)
    assert evaluate_retrieval(*problem) == result


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_gpu_agrees_with_cpu(metric):
    problem, _, _ = recorded("basic")
    on_cpu = evaluate_retrieval(*problem, metric=metric)
    on_gpu = evaluate_retrieval(*(torch.from_numpy(x).cuda() for x in problem), metric=metric)
    assert (on_gpu.map, on_gpu.minp) == pytest.approx((on_cpu.map, on_cpu.minp), abs=1e-5)
    assert on_gpu.cmc == pytest.approx(on_cpu.cmc, abs=0.005)


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


def test_distances_that_are_not_finite_or_do_not_fit_are_refused():
    numbers = small_problem()[2:]
    distances = np.ones((3, 3), np.float32)
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        evaluate_distances(np.ones((3, 4)), *numbers)
    for blocks in ([distances[:2]], [distances, distances[:1]], [distances[:, :2]]):
        with pytest.raises(ValueError, match="must be"):
            evaluate_distances(blocks, *numbers)
    for value in (np.nan, np.inf):
        distances[1, 2] = value
        with pytest.raises(RunError, match="queries 0 to 2 contain NaN"):
            evaluate_distances(distances, *numbers)
