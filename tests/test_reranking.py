from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.errors import RunError
from autoreid.evaluation import distances as distances_module
from autoreid.evaluation import evaluate_distances, rerank, reranking
from tests.helpers.traffic import META, traffic

RANKING_DATA = Path(__file__).parent / "data" / "ranking"
NUMBERS = ("query_ids", "gallery_ids", "query_cameras", "gallery_cameras")


def full(reranked):
    """Concatenate all blocks to a (Q, G) matrix."""
    return torch.cat([block.clone() for block in reranked])


@pytest.mark.parametrize(
    ("name", "k1", "k2", "lambda_"), [("basic", 20, 6, 0.3), ("basic", 10, 1, 0.5), ("ties", 20, 6, 0.3)]
)
def test_agrees_with_recorded_distances(name, k1, k2, lambda_):
    """Recorded from torchreid's re-ranking with a stable sort."""
    key = f"rerank_k1_{k1}_k2_{k2}_l_{lambda_}"
    with np.load(RANKING_DATA / f"{name}.npz") as data:
        query, gallery, expected = data["query_features"], data["gallery_features"], data[key]
        numbers = [data[number] for number in NUMBERS]
    reranked = rerank(query, gallery, k1, k2, lambda_)
    assert np.abs(full(reranked).numpy() - expected).max() < 1e-6
    if name == "basic":  # ties between re-ranked distances depend on the last bit
        recorded = json.loads((RANKING_DATA / f"{name}.json").read_text())[key]
        result = evaluate_distances(reranked, *numbers, ranks=range(1, 51))
        assert result.map == pytest.approx(recorded["map"], abs=1e-5)
        assert result.minp == pytest.approx(recorded["minp"], abs=1e-5)
        assert list(result.cmc.values()) == pytest.approx(recorded["cmc"], abs=1e-6)


def neighbours_of(order, i, k):
    """Return the images among the k + 1 nearest of i that also have i among theirs."""
    return {int(j) for j in order[i][: k + 1] if i in order[j][: k + 1]}


def from_the_definition(query, gallery, k1, k2, lambda_):
    """Compute re-ranked distances as in the paper, with sets and dense rows in float64."""
    images = np.concatenate([query, gallery]).astype(np.float64)
    fourth = ((images[:, None] - images) ** 2).sum(2) ** 2
    largest = fourth.max(1, keepdims=True)
    original = fourth / np.where(largest > 0, largest, 1)
    order = np.argsort(original, axis=1, kind="stable")
    encoding = np.zeros_like(original)
    for i in range(len(images)):
        near = neighbours_of(order, i, k1)
        expanded = set(near)
        for candidate in near:
            theirs = neighbours_of(order, candidate, round(k1 / 2))
            if 3 * len(theirs & near) > 2 * len(theirs):
                expanded |= theirs
        members = sorted(expanded)
        weights = np.exp(-original[i, members])
        encoding[i, members] = weights / weights.sum()
    if k2 > 1:
        encoding = np.array([encoding[order[i][:k2]].mean(0) for i in range(len(images))])
    Q = len(query)
    smaller = np.minimum(encoding[:Q, None], encoding[None, Q:]).sum(2)
    larger = np.maximum(encoding[:Q, None], encoding[None, Q:]).sum(2)
    # If duplicates displace an image from its own neighbours, its encoding is empty.
    both = np.where(larger > 0, larger, 1)
    return (1 - smaller / both) * (1 - lambda_) + original[:Q, Q:] * lambda_, encoding


@st.composite
def clustered_problems(draw):
    """Small integer features around a few centres: exact in float32, with duplicates and ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    Q, G, D = draw(st.integers(1, 12)), draw(st.integers(1, 30)), draw(st.integers(1, 6))
    centres = rng.integers(-9, 10, (draw(st.integers(1, 5)), D))
    spread = draw(st.integers(0, 4))
    images = centres[rng.integers(0, len(centres), Q + G)] + rng.integers(-spread, spread + 1, (Q + G, D))
    images = images.astype(np.float32)
    return images[:Q], images[Q:], draw(st.integers(1, 12)), draw(st.integers(1, 15)), draw(st.floats(0, 1))


@settings(max_examples=200, deadline=None)
@given(clustered_problems())
def test_agrees_with_the_definition(problem):
    expected, encoding = from_the_definition(*problem)
    found = full(rerank(*problem)).numpy()
    full_rows = np.isclose(encoding.sum(1), 1)
    Q = len(problem[0])
    # The published code assumes that every row sums to 1; compare only where it does.
    compared = full_rows[:Q, None] & full_rows[None, Q:]
    assert np.abs(found - expected)[compared].max(initial=0) < 1e-5
    assert np.isfinite(found).all()


def nearest(block, size):
    keys = torch.arange(block.shape[1], device=block.device).repeat(len(block), 1)
    return distances_module.nearest(block, keys, size)


@given(
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from([[0.0, 1.0], [0.25], [0.0, 1e-45, 1e-38, 3e38, float("inf")], list(range(9)), None]),
    st.data(),
)
def test_the_nearest_are_those_of_a_stable_sort(rows, columns, values, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    shape = (rows, columns)
    numbers = rng.random(shape) if values is None else rng.choice(values, shape)  # few values give many ties
    size = data.draw(st.integers(1, columns))
    expected = np.argsort(numbers.astype(np.float32), axis=1, kind="stable")[:, :size]
    assert nearest(torch.from_numpy(numbers.astype(np.float32)), size).tolist() == expected.tolist()


def test_a_device_finds_the_nearest_without_the_host():
    block = torch.zeros(5, 30, device=META)
    with traffic() as found:
        columns = nearest(block, 7)
    assert columns.shape == (5, 7)
    assert found.copies == 0


def some_features(Q=23, G=57, D=4):
    rng = np.random.default_rng(3)
    return rng.normal(size=(Q, D)).astype(np.float32), rng.normal(size=(G, D)).astype(np.float32)


def test_result_does_not_depend_on_the_size_of_blocks(monkeypatch):
    query, gallery = some_features()
    whole = full(rerank(query, gallery))
    monkeypatch.setattr(distances_module, "BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(distances_module, "MIN_BLOCK_ROWS", 5)
    monkeypatch.setattr(reranking, "VALUES_AT_ONCE", 100)
    monkeypatch.setattr(reranking, "PAIRS_AT_ONCE", 7)
    reranked = rerank(query, gallery)
    blocks = [block.clone() for block in reranked]
    assert [len(block) for block in blocks] == [5, 5, 5, 5, 3]
    assert torch.allclose(torch.cat(blocks), whole, atol=1e-6)
    assert torch.equal(full(reranked), torch.cat(blocks)), "it can be iterated over again"


def test_cosine_is_euclidean_of_unit_features():
    query, gallery = some_features()
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    assert torch.allclose(full(rerank(query, gallery, metric="cosine")), full(rerank(*unit)), atol=1e-5)


def test_lambda_1_keeps_the_original_order():
    query, gallery = some_features()
    order = torch.cdist(torch.from_numpy(query), torch.from_numpy(gallery)).argsort(1)
    assert torch.equal(full(rerank(query, gallery, lambda_=1)).argsort(1), order)


@pytest.mark.parametrize("parameter", [{"k1": 0}, {"k2": 0}, {"lambda_": 1.5}, {"metric": "manhattan"}])
def test_parameters_out_of_range_are_refused(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter)).replace("_", ".")):
        rerank(*some_features(), **parameter)


def test_features_that_are_not_finite_are_refused():
    query, gallery = some_features()
    gallery[4, 1] = np.nan
    with pytest.raises(RunError, match="1 gallery rows"):
        rerank(query, gallery)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu():
    features = [torch.from_numpy(x) for x in some_features(40, 900, 16)]
    on_gpu = full(rerank(*(x.cuda() for x in features)))
    assert on_gpu.is_cuda
    assert torch.allclose(on_gpu.cpu(), full(rerank(*features)), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("levels", [2, 50, 10**6])
def test_gpu_orders_ties_as_the_cpu(levels):
    block = torch.randint(levels, (207, 19_281)) / levels
    expected = block.sort(dim=1, stable=True).indices[:, :21]
    assert torch.equal(nearest(block.cuda(), 21).cpu(), expected)
