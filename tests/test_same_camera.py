"""Data from one camera: matches by the query's camera, and images that are query and gallery at once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.data.records import JUNK, ReidDataset, Split
from autoreid.data.splits import hold_out
from autoreid.data.targets import check_target
from autoreid.errors import DataError, RunError
from autoreid.evaluation import evaluate_distances
from autoreid.evaluation.comparison import Comparison
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.protocol import own_images
from autoreid.reporting.ranked_lists import rank_lists
from tests.test_ranked_lists import people
from tests.test_splits import SEEDS, as_rows, splits


def counted_images(query, gallery, q, keep_same_camera):
    """Gallery images that count for a query, by the definition."""
    for g in range(len(gallery)):
        same = gallery.identities[g] == query.identities[q]
        ignored = gallery.cameras[g] == query.cameras[q] and not keep_same_camera
        itself = query.paths[q] and gallery.paths[g] == query.paths[q]
        if gallery.identities[g] != JUNK and not itself and not (same and ignored):
            yield g, bool(same)


@st.composite
def overlapping(draw):
    """A query and a gallery with some images in both, and distances with ties."""
    rng = np.random.default_rng(draw(SEEDS))
    images = draw(st.integers(2, 30))
    identities, cameras = rng.integers(JUNK, 4, images), rng.integers(1, 3, images)
    paths = [f"{number}.jpg" for number in range(images)]
    chosen = [rng.permutation(images)[: rng.integers(1, images + 1)] for _ in range(2)]
    sets = [people(identities[part], cameras[part], [paths[index] for index in part]) for part in chosen]
    return *sets, rng.integers(0, 5, (len(chosen[0]), len(chosen[1]))).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(overlapping(), st.booleans())
def test_map_and_lists_agree_with_the_definition(problem, keep):
    query, gallery, distances = problem
    precisions = []
    lists = rank_lists(distances, query, gallery, 1000, keep)
    for q in range(len(query)):
        ranked = sorted((distances[q, g], g, same) for g, same in counted_images(query, gallery, q, keep))
        assert lists[q].gallery.tolist() == [g for _, g, _ in ranked]
        ranks = [rank for rank, (_, _, same) in enumerate(ranked, start=1) if same]
        if ranks and query.identities[q] != JUNK:
            precisions.append(np.mean([n / rank for n, rank in enumerate(ranks, start=1)]))
    numbers = (query.identities, gallery.identities, query.cameras, gallery.cameras)
    rules = {"keep_same_camera": keep, "own": own_images(query.paths.tolist(), gallery.paths.tolist())}
    if not precisions:
        with pytest.raises(RunError, match="none of the"):
            evaluate_distances(distances, *numbers, **rules)
        return
    result = evaluate_distances(distances, *numbers, **rules)
    assert result.valid_queries == len(precisions)
    assert result.map == pytest.approx(np.mean(precisions))


def test_images_without_a_path_are_no_images_of_their_own():
    assert own_images(["a", "", "b"], ["", "b", "c"]).tolist() == [-1, -1, 1]


@pytest.mark.parametrize("reranked", [False, True])
def test_one_set_of_images_can_be_query_and_gallery(reranked):
    """The nearest image of each is itself; without it, the ranking is that of leaving one out."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 4)).astype(np.float32)
    identities, one = np.arange(12) % 3, np.ones(12, int)
    images = FeatureSet(features, identities, one, np.array([f"{number}.jpg" for number in range(12)]))
    result = Comparison(images, images, "euclidean", reranked, torch.device("cpu"), True).evaluate((1,))
    if reranked:
        assert result.valid_queries == 12
        return
    precisions = []
    for q in range(12):
        others = np.delete(np.arange(12), q)
        distance = ((features[others].astype(np.float64) - features[q]) ** 2).sum(1)
        right = identities[others[np.argsort(distance)]] == identities[q]
        ranks = np.flatnonzero(right) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    assert result.map == pytest.approx(np.mean(precisions))
    assert result.map < 1


def split(name, rows):
    paths, identities, cameras = zip(*rows, strict=True) if rows else ((), (), ())
    numbers = (np.array(column, dtype=np.int64) for column in (identities, cameras))
    return Split(name, np.array(paths, dtype=object), *numbers)


def target(query, gallery):
    return ReidDataset("shop", split("train", []), split("query", query), split("gallery", gallery))


def test_one_camera_is_answered_with_the_ways_out():
    shop = target([("a", 1, 1)], [("b", 1, 1), ("c", 2, 1)])
    with pytest.raises(DataError) as error:
        check_target(shop, False)
    for words in (
        "shop: no query has a gallery image of its identity from another camera",
        "evaluation.keep_same_camera=true (evaluate: --keep-same-camera)",
        "or give each image a camera of its own in images.csv",
    ):
        assert words in str(error.value)
    assert check_target(shop, True) == ()


def test_an_image_is_no_match_of_itself():
    both = [("a", 1, 1), ("b", 2, 1)]
    with pytest.raises(DataError, match=r"no query has a gallery image of its identity$"):
        check_target(target(both, both), True)
    (note,) = check_target(target(both, [*both, ("c", 2, 1)]), True)
    assert note.startswith(
        "shop: 1 of 2 queries are ignored, because the gallery has no image of their identity,"
    )
    assert note.endswith("such as a")


def test_feature_files_without_paths_may_have_single_matches():
    assert check_target(target([("", 1, 1)], [("", 1, 1), ("", 2, 1)]), True) == ()


@pytest.mark.parametrize(
    ("query", "gallery", "what"), [([], [("a", 1, 1)], "queries"), ([("a", 1, 1)], [], "gallery images")]
)
def test_a_target_without_queries_or_gallery_is_refused(query, gallery, what):
    with pytest.raises(
        DataError, match=f"shop: has no {what}, so it cannot be evaluated; choose another data set"
    ):
        check_target(target(query, gallery), False)


@given(splits(), st.floats(0.01, 0.9), SEEDS)
def test_people_of_one_camera_can_be_held_out(train, fraction, seed):
    images = Counter(train.identities.tolist())
    twice = {person for person, count in images.items() if count >= 2}
    wanted = max(2, round(fraction * train.num_identities))
    if wanted > len(twice) or wanted >= train.num_identities:
        with pytest.raises(DataError, match=f"{len(twice)} have two images or more"):
            hold_out(train, fraction, seed, True)
        return
    rest, query, gallery = hold_out(train, fraction, seed, True)
    assert as_rows(rest, query, gallery) == as_rows(train)
    held = set(gallery.identities.tolist())
    assert len(held) == wanted
    assert held <= twice
    assert set(query.identities.tolist()) == held
    assert held.isdisjoint(rest.identities.tolist())


def test_all_people_have_an_image_that_is_query_and_gallery_once():
    both = [("a", 1, 1), ("b", 2, 1)]
    everyone = target(both, [*both, ("c", 2, 2), ("d", 0, 1)]).all_people()
    assert sorted(everyone.paths) == ["a", "b", "c"]
