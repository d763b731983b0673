"""Query expansion against its formula in float64."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.evaluation import distances as distances_module
from autoreid.evaluation.comparison import Comparison
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.query_expansion import expand_queries
from autoreid.evaluation.reranking import rerank


def from_the_formula(query, gallery, own, images, alpha, metric):
    """Expand one query at a time, one gallery image at a time."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)

    def cosine(a, b):
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / norms) if norms else 0.0

    expanded = []
    for q, one in enumerate(query):
        others = [g for g in range(len(gallery)) if g != own[q]]
        if metric == "euclidean":
            found = sorted(others, key=lambda g: (((one - gallery[g]) ** 2).sum(), g))
        else:
            found = sorted(others, key=lambda g: (round(1 - cosine(one, gallery[g]), 9), g))

        def unit(feature):
            return feature / np.linalg.norm(feature) if metric == "cosine" else feature

        total, weights = unit(one).copy(), 1.0
        for g in found[:images]:
            weight = max(0.0, cosine(one, gallery[g])) ** alpha
            total, weights = total + weight * unit(gallery[g]), weights + weight
        expanded.append(total / weights)
    return np.array(expanded)


@st.composite
def problems(draw, numbers):
    """Queries and a gallery, where some queries are in the gallery."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    Q, G, D = draw(st.integers(1, 120)), draw(st.integers(2, 40)), draw(st.integers(1, 4))
    query, gallery = numbers(rng, (Q, D)), numbers(rng, (G, D))
    own = rng.integers(-1, G, Q)
    images, alpha = draw(st.integers(1, G - 1)), draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    return query.astype(np.float32), gallery.astype(np.float32), own, images, alpha


@settings(max_examples=80, deadline=None)
@given(problems(lambda rng, shape: rng.integers(-1, 2, shape)))
def test_with_many_ties_and_features_of_zeros(problem):
    expected = from_the_formula(*problem, "euclidean")
    with mock.patch.object(distances_module, "BLOCK_ELEMENTS", 1):  # several blocks
        result = expand_queries(*problem, metric="euclidean")
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(problems(lambda rng, shape: rng.normal(size=shape)))
def test_with_the_cosine_of_normalised_features(problem):
    expected = from_the_formula(*problem, "cosine")
    result = expand_queries(*problem, metric="cosine").numpy()
    # With one dimension, all distances are ties, which rounding breaks; the features are the same then.
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


def test_alpha_zero_is_the_plain_mean_and_a_large_alpha_leaves_only_equal_directions():
    query, gallery = np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 1.0], [-9.0, 0.0]])
    own = np.array([-1])
    assert expand_queries(query, gallery, own, 2, 0).tolist() == [[1.0, pytest.approx(1 / 3)]]
    assert expand_queries(query, gallery, own, 2, 50).tolist() == [[1.5, 0.0]]


@pytest.mark.parametrize("images", [0, 3])
def test_a_gallery_that_is_too_small_is_refused(images):
    features = np.ones((3, 2))
    with pytest.raises(ValueError, match="between 1 and 2 for a gallery of 3 images"):
        expand_queries(features, features, np.full(3, -1), images)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_expanded_queries_are_ranked_and_reranked(metric):
    """An image that is query and gallery at once is no neighbour of itself."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6)).astype(np.float32)
    paths = np.array([f"{number}.jpg" for number in range(40)])
    gallery = FeatureSet(features, rng.integers(0, 5, 40), rng.integers(0, 3, 40), paths)
    query = gallery.select(np.arange(12))
    comparison = Comparison(query, gallery, metric, True, torch.device("cpu")).expanded(5, 1.0)
    expected = from_the_formula(features[:12], features, np.arange(12), 5, 1.0, metric)
    np.testing.assert_allclose(comparison.query.features, expected, rtol=1e-4, atol=1e-5)
    (matrix,) = rerank(comparison.query.features, features, metric=metric)
    assert np.array_equal(comparison.distances(np.arange(12)), matrix.numpy())
