from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoreid.data.records import Split
from autoreid.data.splits import bilevel, hold_out
from autoreid.errors import ConfigError, DataError

SEEDS = st.integers(0, 2**32 - 1)


def make_split(views: list[tuple[int, int]]) -> Split:
    identities, cameras = np.array(views, dtype=np.int64).reshape(-1, 2).T
    paths = np.array([f"{i}.jpg" for i in range(len(views))], dtype=object)
    return Split("train", paths, identities, cameras)


# (identity, camera) of each image, in any order; identities have one or many images
@st.composite
def splits(draw) -> Split:
    cameras = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=12))
    views = [(identity, camera) for identity, seen in enumerate(cameras, 5) for camera in seen]
    return make_split(draw(st.permutations(views)))


def as_rows(*parts: Split) -> list[tuple[str, int, int]]:
    rows = [zip(p.paths, p.identities.tolist(), p.cameras.tolist(), strict=True) for p in parts]
    return sorted(row for part in rows for row in part)


def seen_twice(train: Split) -> set[int]:
    views = set(zip(train.identities.tolist(), train.cameras.tolist(), strict=True))
    return {i for i, count in Counter(i for i, _ in views).items() if count >= 2}


@given(splits(), st.floats(0.01, 0.9), SEEDS)
def test_hold_out_sets_whole_identities_aside_that_can_be_found_again(train, fraction, seed):
    wanted = max(2, round(fraction * train.num_identities))
    if wanted > len(seen_twice(train)) or wanted >= train.num_identities:
        with pytest.raises(DataError, match=f"holding out {wanted}"):
            hold_out(train, fraction, seed)
        return
    rest, query, gallery = hold_out(train, fraction, seed)
    assert as_rows(rest, query, gallery) == as_rows(train)
    held = set(gallery.identities.tolist())
    assert len(held) == wanted
    assert held <= seen_twice(train)
    assert held.isdisjoint(rest.identities.tolist())
    assert set(query.identities.tolist()) == held, "each held-out identity has a query"
    views = list(zip(query.identities.tolist(), query.cameras.tolist(), strict=True))
    assert len(views) == len(set(views)), "at most one query per identity and camera"
    for identity, camera in views:
        assert np.any((gallery.identities == identity) & (gallery.cameras != camera))
    # a view has no query only if all other images of its identity are from the same camera
    for identity, camera in set(
        zip(gallery.identities.tolist(), gallery.cameras.tolist(), strict=True)
    ) - set(views):
        assert not np.any((gallery.identities == identity) & (gallery.cameras != camera))


@given(splits(), SEEDS)
def test_hold_out_of_nothing_keeps_everything(train, seed):
    rest, query, gallery = hold_out(train, 0.0, seed)
    assert rest.paths.tolist() == train.paths.tolist()
    assert len(query) == len(gallery) == 0
    assert (query.name, gallery.name) == ("held-out query", "held-out gallery")


def test_hold_out_depends_on_the_seed_alone():
    train = make_split([(i, c) for i in range(1, 41) for c in (1, 2, 3) for _ in range(3)])
    chosen = [hold_out(train, 0.25, seed)[1].paths.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 10 * 3


def test_hold_out_says_what_is_wrong():
    with pytest.raises(ConfigError, match=r"1\.0"):
        hold_out(make_split([(1, 1)]), 1.0, 0)
    with pytest.raises(DataError, match="2 are seen by two cameras"):
        hold_out(make_split([(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 1)]), 0.75, 0)
    with pytest.raises(DataError, match="at least one must be left for training"):
        hold_out(make_split([(1, 1), (1, 2), (2, 1), (2, 2)]), 0.1, 0)


@given(splits(), st.floats(0.05, 0.95), st.integers(1, 4), SEEDS)
def test_bilevel_divides_each_identity(train, fraction, K, seed):
    counts = Counter(train.identities.tolist())
    if max(counts.values()) < 2 * K:
        with pytest.raises(DataError, match=f"no identity has {2 * K} images"):
            bilevel(train, fraction, K, seed)
        return
    split = bilevel(train, fraction, K, seed)
    assert as_rows(split.weights, split.alphas) == as_rows(train)
    for_alphas = Counter(split.alphas.identities.tolist())
    for identity, n in counts.items():
        expected = min(max(round(fraction * n), K), n - K) if n >= 2 * K else 0
        assert for_alphas[identity] == expected
    assert split.identities_without_alphas == sum(n < 2 * K for n in counts.values())


def test_bilevel_depends_on_the_seed_alone():
    train = make_split([(i, 1) for i in range(20) for _ in range(10)])
    chosen = [bilevel(train, 0.5, 4, seed).alphas.paths.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_bilevel_says_what_is_wrong():
    train = make_split([(1, 1)] * 7 + [(2, 1)] * 3)
    with pytest.raises(DataError, match=r"no identity has 8 images.*the largest has 7"):
        bilevel(train, 0.5, 4, 0)
    with pytest.raises(ConfigError, match="alpha fraction 0"):
        bilevel(train, 0.0, 1, 0)
    with pytest.raises(ConfigError, match="images per identity 0"):
        bilevel(train, 0.5, 0, 0)
