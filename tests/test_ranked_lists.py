from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autoreid.data.records import JUNK
from autoreid.errors import DataError
from autoreid.evaluation.features import FeatureSet
from autoreid.reporting import ranked_lists
from autoreid.reporting.ranked_lists import draw_ranked_lists, hardest_queries, rank_lists


def people(identities, cameras, paths=None, D=2):
    N = len(identities)
    paths = np.array(paths if paths is not None else [""] * N)
    return FeatureSet(np.zeros((N, D), np.float32), np.array(identities), np.array(cameras), paths)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 30), st.integers(1, 12))
def test_lists_equal_a_brute_force_sort_without_excluded_images(seed, Q, G, top):
    rng = np.random.default_rng(seed)
    query = people(rng.integers(0, 4, Q), rng.integers(1, 3, Q))
    gallery = people(rng.integers(JUNK, 4, G), rng.integers(1, 3, G))
    distances = rng.integers(0, 5, (Q, G)).astype(np.float32)  # many ties
    lists = rank_lists(distances, query, gallery, top)
    for q in range(Q):
        kept = []
        for g in range(G):
            same_person = gallery.identities[g] == query.identities[q]
            same_camera = gallery.cameras[g] == query.cameras[q]
            if gallery.identities[g] != JUNK and not (same_person and same_camera):
                kept.append((float(distances[q, g]), g, bool(same_person)))
        kept = sorted(kept)[:top]
        assert lists[q].gallery.tolist() == [g for _, g, _ in kept]
        assert lists[q].distances.tolist() == [distance for distance, _, _ in kept]
        assert lists[q].right.tolist() == [right for _, _, right in kept]


def test_the_hardest_queries_come_first_and_those_without_a_match_are_excluded():
    precision = np.array([0.5, np.nan, 0.1, 0.9, 0.1])
    assert hardest_queries(precision, 3).tolist() == [2, 4, 0]
    assert hardest_queries(precision, 10).tolist() == [2, 4, 0, 3]
    assert hardest_queries(np.array([np.nan]), 2).tolist() == []


@pytest.fixture
def drawn(tmp_path):
    """The drawing of two queries with three and two gallery images in their lists, all of a single colour."""
    colours = {"query": (0, 0, 255), "right": (200, 200, 0), "wrong": (0, 200, 200), "junk": (255, 255, 255)}
    files = {}
    for name, colour in colours.items():
        files[name] = str(tmp_path / f"{name}.png")
        Image.new("RGB", (64, 128), colour).save(files[name])
    query = people([1, 2], [1, 2], [files["query"]] * 2)
    gallery = people([1, 2, JUNK, 7], [2, 2, 1, 1], [files[x] for x in ("right", "wrong", "junk", "wrong")])
    distances = np.array([[0.2, 0.1, 0.0, 0.3], [0.1, 0.0, 0.0, 0.2]], np.float32)
    lists = rank_lists(distances, query, gallery)
    sheet = draw_ranked_lists(lists, query, gallery, np.array([0.5, np.nan]), "title")
    return sheet, colours


def pixels(sheet, row, column):
    """Return the colours of the border of a cell, on all four sides, and of its image."""
    left = ranked_lists._left(column)
    top = ranked_lists.MARGIN + 2 * ranked_lists.HEADER + row * ranked_lists.CELL[1]
    width, height = (size + 2 * ranked_lists.BORDER for size in ranked_lists.IMAGE)
    x, y = left + width // 2, top + height // 2
    border = {
        sheet.getpixel(at) for at in ((left, y), (left + width - 1, y), (x, top), (x, top + height - 1))
    }
    return border, sheet.getpixel((x, y))


def test_borders_of_matches_are_green_and_others_red(drawn):
    sheet, colours = drawn
    green, red, grey = (34, 160, 70), (214, 39, 40), (70, 80, 90)
    assert pixels(sheet, 0, 0) == ({grey}, colours["query"])
    assert pixels(sheet, 0, 1) == ({red}, colours["wrong"])
    assert pixels(sheet, 0, 2) == ({green}, colours["right"])
    assert pixels(sheet, 0, 3) == ({red}, colours["wrong"])
    # The image by the second query's camera and junk are excluded from its list: places 1 and 2 are other people.
    assert pixels(sheet, 1, 1) == ({red}, colours["right"])
    assert pixels(sheet, 1, 2) == ({red}, colours["wrong"])
    assert pixels(sheet, 1, 3) == ({(255, 255, 255)}, (255, 255, 255))


def test_captions_are_drawn_below_the_images(drawn):
    sheet, _ = drawn
    under = ranked_lists.MARGIN + 2 * ranked_lists.HEADER + ranked_lists.CELL[1] - ranked_lists.CAPTION
    left = ranked_lists._left(1)
    caption = np.asarray(sheet)[under : under + 20, left : left + ranked_lists.IMAGE[0]]
    assert 20 < np.count_nonzero(caption.min(2) < 128) < 400


@pytest.mark.parametrize(
    ("path", "message"), [("", "no image paths"), ("nowhere.jpg", r"nowhere\.jpg: cannot read")]
)
def test_unreadable_images_are_an_error(path, message):
    query, gallery = people([1], [1], [path]), people([1], [2], [path])
    lists = rank_lists(np.zeros((1, 1), np.float32), query, gallery)
    with pytest.raises(DataError, match=message):
        draw_ranked_lists(lists, query, gallery, np.ones(1), "title")
