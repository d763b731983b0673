"""Multi-query against its definition, and the images of Market-1501's gt_bbox."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.data.datasets.market1501 import read_market1501, read_multi_query
from autoreid.data.targets import check_target, check_target_folder
from autoreid.errors import DataError
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.multi_query import merge_queries
from tests.helpers import miniatures


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.sampled_from(["mean", "max"]),
    st.sampled_from(["euclidean", "cosine"]),
)
def test_each_identity_and_camera_is_one_query(seed, N, pooling, metric):
    rng = np.random.default_rng(seed)
    features = rng.integers(-2, 3, (N, 3)).astype(np.float32)
    paths = np.array([f"{number}.jpg" for number in range(N)])
    query = FeatureSet(features, rng.integers(-1, 4, N), rng.integers(1, 4, N), paths)
    images: dict[tuple[int, int], list[int]] = {}
    for number in range(N):
        images.setdefault((query.identities[number], query.cameras[number]), []).append(number)
    merged = merge_queries(query, pooling, metric)
    assert list(zip(merged.identities, merged.cameras, strict=True)) == sorted(images)
    assert merged.features.dtype == np.float32
    for number, sighting in enumerate(sorted(images)):
        rows = [features[image].astype(np.float64) for image in images[sighting]]
        if metric == "cosine":
            rows = [row / np.linalg.norm(row) if row.any() else row for row in rows]
        expected = sum(rows) / len(rows) if pooling == "mean" else np.max(rows, axis=0)
        np.testing.assert_allclose(merged.features[number], expected, rtol=1e-5, atol=1e-6)
        assert merged.paths[number] == paths[images[sighting][0]]


@pytest.fixture
def market(tmp_path):
    """Market-1501 with hand-drawn boxes: three of a query, one of a person in training, and none of other queries."""
    folder = tmp_path / "market"
    miniatures.market1501(folder)
    for name in ("0001_c1s1_002301_00.jpg", "0001_c1s2_000001_00.jpg", "0002_c1s1_000451_00.jpg"):
        (folder / "Market-1501-v15.09.15/gt_bbox" / name).write_bytes(miniatures.picture(1))
    return folder


def test_the_boxes_of_market1501_are_those_of_a_querys_person_and_camera(market):
    query = read_market1501(market).query
    images = read_multi_query(market, query)
    inside = market / "Market-1501-v15.09.15"
    boxes = ("0001_c1s1_001051_00.jpg", "0001_c1s1_002301_00.jpg", "0001_c1s2_000001_00.jpg")
    others = ("0001_c2s1_001051_00.jpg", "1501_c1s1_001051_00.jpg", "1501_c2s1_001051_00.jpg")
    assert list(images.paths) == [
        *(str(inside / "gt_bbox" / name) for name in boxes),
        *(str(inside / "query" / name) for name in others),
    ]
    assert images.identities.tolist() == [1, 1, 1, 1, 1501, 1501]
    assert images.cameras.tolist() == [1, 1, 1, 2, 1, 2]
    merged = merge_queries(
        FeatureSet(np.ones((6, 1), np.float32), images.identities, images.cameras, images.paths),
        "mean",
        "cosine",
    )
    assert len(merged) == len(query)
    assert check_target_folder(market, "market", False, multi_query=True).query.paths.tolist() == list(
        images.paths
    )
    assert check_target_folder(market, "market", False).query.paths.tolist() == list(query.paths)


def test_without_boxes_the_queries_themselves_are_merged(tmp_path):
    miniatures.dukemtmc(tmp_path)
    query = check_target_folder(tmp_path, "duke", False).query
    assert check_target_folder(tmp_path, "duke", False, multi_query=True).query.paths.tolist() == list(
        query.paths
    )


def test_a_box_with_a_wrong_name_is_told(market):
    (market / "Market-1501-v15.09.15/gt_bbox/person.jpg").write_bytes(miniatures.picture(1))
    with pytest.raises(DataError, match=r"gt_bbox/person\.jpg: "):
        check_target_folder(market, "market", False, multi_query=True)


def test_ignored_queries_are_counted_after_merging(market):
    target = check_target_folder(market, "market", False, multi_query=True)
    gallery = target.gallery.select(target.gallery.identities == 1501)
    (note,) = check_target(replace(target, gallery=gallery), False, multi_query=True)
    assert "2 of 4 queries are ignored" in note
