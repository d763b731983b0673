from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.data.records import JUNK
from autoreid.errors import RunError
from autoreid.evaluation import evaluate_retrieval, evaluate_single_shot

RANKING_DATA = Path(__file__).parent / "data" / "ranking"


def recorded_problem():
    names = (
        "query_features",
        "gallery_features",
        "query_ids",
        "gallery_ids",
        "query_cameras",
        "gallery_cameras",
    )
    with np.load(RANKING_DATA / "cuhk03.npz") as data:
        return [data[name] for name in names]


def test_mean_cmc_agrees_with_the_recorded_mean_within_its_spread():
    """Recorded: the mean of 200 seeds, 10 repeats each; ours is as exact with 2,000 repeats."""
    expected = json.loads((RANKING_DATA / "cuhk03.json").read_text())
    result = evaluate_single_shot(*recorded_problem(), ranks=range(1, 21), repeats=2000)
    error = np.array(list(result.cmc.values())) - expected["mean_cmc_200_seeds"]
    # Both means vary; five of their standard errors, and the recorded float32.
    assert (np.abs(error) <= 5 * np.array(expected["std_cmc_200_seeds"]) * np.sqrt(2 / 200) + 1e-6).all()
    assert result.map == pytest.approx(expected["map"], abs=1e-12)


def exact_cmc(distance, query_ids, gallery_ids, query_cameras, gallery_cameras, ranks):
    """The expected CMC: over all galleries of one image an identity, one at a time."""
    shares, queries = dict.fromkeys(ranks, 0.0), 0
    for q, own_id in enumerate(query_ids):
        groups: dict[int, list[int]] = {}
        for g, identity in enumerate(gallery_ids):
            if identity != JUNK and not (identity == own_id and gallery_cameras[g] == query_cameras[q]):
                groups.setdefault(identity, []).append(g)
        if own_id == JUNK or own_id not in groups:
            continue
        queries += 1
        galleries = list(itertools.product(*groups.values()))
        for gallery in galleries:
            order = sorted(gallery, key=lambda g: (distance[q][g], g))
            first = 1 + [gallery_ids[g] for g in order].index(own_id)
            for rank in ranks:
                shares[rank] += (first <= rank) / len(galleries)
    return {rank: share / queries for rank, share in shares.items()} if queries else None


@st.composite
def small_problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    Q, G, identities = draw(st.integers(1, 8)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    features = [rng.integers(-1, 2, (n, 2)).astype(np.float32) for n in (Q, G)]
    ids = [rng.integers(0, identities, Q), rng.integers(JUNK, identities, G)]
    return [*features, *ids, *(rng.integers(0, 3, n) for n in (Q, G))]


@settings(max_examples=30, deadline=None)
@given(small_problems())
def test_mean_cmc_approaches_that_of_all_possible_galleries(problem):
    query, gallery, *numbers = problem
    distance = [[float(((q - g) ** 2).sum()) for g in gallery] for q in query]
    expected = exact_cmc(distance, *numbers, ranks=(1, 2, 3, 50))
    if expected is None:
        with pytest.raises(RunError, match="has a match"):
            evaluate_single_shot(*problem)
        return
    result = evaluate_single_shot(*problem, ranks=(1, 2, 3, 50), repeats=600)
    # A share of 600 draws strays from its expectation by 0.02 at most (one standard deviation).
    assert result.cmc == pytest.approx(expected, abs=0.12)
    assert result.cmc[50] == 1
    assert (result.map, result.valid_queries) == (
        (whole := evaluate_retrieval(*problem)).map,
        whole.valid_queries,
    )


def test_a_seed_gives_the_same_result_and_no_repeats_are_refused():
    problem = recorded_problem()
    one, same, other = (evaluate_single_shot(*problem, repeats=3, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.cmc != other.cmc
    with pytest.raises(ValueError, match="repeats=0"):
        evaluate_single_shot(*problem, repeats=0)
