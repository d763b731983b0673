"""The ROC of all pairs against its definitions in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autoreid.data.records import JUNK
from autoreid.errors import DataError
from autoreid.evaluation import roc as roc_module
from autoreid.evaluation.comparison import Comparison
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.protocol import Protocol
from autoreid.evaluation.roc import FALSE_POSITIVE_RATES, measure_roc
from tests.helpers.features import random_features
from tests.test_ranking import retrieval_problems


def pairs_of(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, own, keep):
    """Return the distances of positive and negative pairs by the protocol, one pair at a time."""
    positive, negative = [], []
    for q in range(len(query_ids)):
        mine, others = [], []
        for g in range(len(gallery_ids)):
            same = gallery_ids[g] == query_ids[q]
            removed = (query_cameras[q] == gallery_cameras[g] and not keep) or own[q] == g
            if gallery_ids[g] == JUNK or (same and removed):
                continue
            (mine if same else others).append(float(distances[q][g]))
        if mine:
            positive += mine
            negative += others
    return np.array(positive), np.array(negative)


def by_definition(positive, negative):
    """Return the corners of the curve, and a function of the highest TPR at an FPR, by trying all thresholds."""
    thresholds = [-np.inf, *np.unique(np.concatenate([positive, negative]))]
    corners = [
        ((negative <= t).mean(), (positive <= t).mean(), int((negative <= t).sum())) for t in thresholds
    ]

    def tpr_at(rate_times_negatives):
        return max(true for _, true, count in corners if count <= rate_times_negatives)

    return [(false, true) for false, true, _ in corners], tpr_at


def crossing(corners):
    """Return the FPR at which the curve through the corners crosses FPR + TPR = 1."""
    for (x0, y0), (x1, y1) in pairwise(corners):
        if x0 + y0 <= 1 <= x1 + y1 and x1 + y1 > x0 + y0:
            return x0 + (x1 - x0) * (1 - x0 - y0) / (x1 + y1 - x0 - y0)
    raise AssertionError("no crossing")


@settings(max_examples=120, deadline=None)
@given(retrieval_problems(), st.booleans(), st.integers(0, 2**32 - 1), st.sampled_from([1, 10]))
def test_all_measures_agree_with_their_definitions(problem, keep, seed, least):
    query, gallery, *numbers = problem
    own = np.random.default_rng(seed).integers(-1, len(gallery), len(query))
    distances = ((query[:, None].astype(np.float64) - gallery) ** 2).sum(2)
    positive, negative = pairs_of(distances, *numbers, own, keep)
    assume(len(positive) and len(negative))
    blocks = torch.from_numpy(distances).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roc_module, "MIN_FALSE_POSITIVES", least)
        roc = measure_roc(lambda: [block.clone() for block in blocks.split(7)], Protocol(*numbers, keep, own))
    assert (roc.positives, roc.negatives) == (len(positive), len(negative))
    corners, tpr_at = by_definition(positive, negative)
    # 10 ** 4 pairs allow exactly one false positive at a rate of 1e-4.
    allowed = {rate: len(negative) // round(1 / rate) for rate in FALSE_POSITIVE_RATES}
    assert roc.tpr == {rate: tpr_at(count) for rate, count in allowed.items() if count >= least}
    closer = (positive[:, None] < negative).mean() + (positive[:, None] == negative).mean() / 2
    assert roc.auc == pytest.approx(closer, abs=1e-12)
    assert roc.eer == pytest.approx(crossing(corners), abs=1e-12)
    for rate, share in zip(*roc.curve, strict=True):
        assert share == pytest.approx(tpr_at(rate * len(negative) * (1 + 1e-9)))
    assert roc.curve[0][-1] == 1
    assert roc.curve[1][-1] == 1


@pytest.mark.parametrize("reranked", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_comparison_measures_its_own_distances(metric, reranked):
    rng = np.random.default_rng(0)
    query, gallery = (random_features(rng, count) for count in (30, 90))
    comparison = Comparison(query, gallery, metric, reranked, torch.device("cpu"))
    matrix = comparison.distances(np.arange(30))
    numbers = (query.identities, gallery.identities, query.cameras, gallery.cameras)
    positive, negative = pairs_of(matrix, *numbers, np.full(30, -1), False)
    roc = comparison.roc()
    _, tpr_at = by_definition(positive, negative)
    assert roc.tpr == {rate: tpr_at(rate * len(negative)) for rate in (0.1, 0.01)}
    assert (roc.positives, roc.negatives) == (len(positive), len(negative))
    assert comparison.evaluate([1]) == Comparison(
        query, gallery, metric, reranked, torch.device("cpu")
    ).evaluate([1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu():
    """Distances of small integers are exact, so all ties are the same."""
    rng = np.random.default_rng(0)
    query, gallery = (
        FeatureSet(
            rng.integers(-2, 3, (N, 3)).astype(np.float32),
            rng.integers(JUNK, 5, N),
            rng.integers(0, 3, N),
            np.full(N, ""),
        )
        for N in (130, 400)
    )
    on_cpu, on_gpu = (
        Comparison(query, gallery, "euclidean", False, torch.device(name)) for name in ("cpu", "cuda")
    )
    assert on_gpu.roc() == on_cpu.roc()
    expanded = [one.expanded(7, 3.0).query.features for one in (on_cpu, on_gpu)]
    np.testing.assert_allclose(*expanded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("gallery", "message"), [([1, 1], "all pairs .* show the same"), ([2], "no pair")])
def test_a_curve_needs_both_kinds_of_pairs(gallery, message):
    distances = torch.zeros(1, len(gallery))
    protocol = Protocol([1], gallery, [1], [2] * len(gallery))
    with pytest.raises(DataError, match=message):
        measure_roc(lambda: [distances.clone()], protocol)
