"""How the images are divided between weights and alphas: by camera, by identity, and by domains that take turns."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoreid.data.domains import RotatingSampler
from autoreid.data.levels import divide_by_camera, divide_by_identity, label
from autoreid.data.records import Split
from autoreid.errors import ConfigError, DataError

SEEDS = st.integers(0, 2**32 - 1)
FRACTIONS = st.floats(0.1, 0.9)


def make_split(views: list[tuple[int, int]]) -> Split:
    identities, cameras = np.array(views, dtype=np.int64).reshape(-1, 2).T
    paths = np.array([f"{i}.jpg" for i in range(len(views))], dtype=object)
    return Split("train", paths, identities, cameras)


@st.composite
def splits(draw) -> Split:
    cameras = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=12))
    views = [(identity, camera) for identity, seen in enumerate(cameras, 5) for camera in seen]
    return make_split(draw(st.permutations(views)))


def assert_nothing_is_lost(train: Split, halves) -> None:
    parts = (halves.weights, halves.alphas)
    rows = [zip(p.paths, p.identities.tolist(), p.cameras.tolist(), strict=True) for p in parts]
    whole = zip(train.paths, train.identities.tolist(), train.cameras.tolist(), strict=True)
    assert sorted(row for part in rows for row in part) == sorted(whole), "each image is in one part"


def cameras_of(split: Split, identity: int) -> Counter[int]:
    return Counter(split.cameras[split.identities == identity].tolist())


def possible_counts(sizes: list[int], at_least: int) -> set[int]:
    """Numbers of images that the alphas can get, by trying all sets of cameras."""
    chosen = (some for count in range(len(sizes) + 1) for some in combinations(sizes, count))
    return {sum(some) for some in chosen if at_least <= sum(some) <= sum(sizes) - at_least}


@given(splits(), FRACTIONS, st.integers(1, 3), SEEDS)
def test_cameras_are_divided_whole_and_as_closely_as_possible(train, fraction, K, seed):
    sizes = {identity: cameras_of(train, identity) for identity in np.unique(train.identities).tolist()}
    wanted = {identity: possible_counts(list(own.values()), K) for identity, own in sizes.items()}
    if not any(wanted.values()):
        with pytest.raises(DataError, match=r"no identity's cameras can be divided so that \d of its images"):
            divide_by_camera(train, fraction, K, seed)
        return
    halves = divide_by_camera(train, fraction, K, seed)
    assert_nothing_is_lost(train, halves)
    assert halves.identities_without_alphas == sum(not counts for counts in wanted.values())
    for identity, counts in wanted.items():
        for_weights, for_alphas = (cameras_of(half, identity) for half in (halves.weights, halves.alphas))
        assert not for_weights.keys() & for_alphas.keys(), "no camera is in both parts"
        total = sum(sizes[identity].values())
        closest = min((abs(count - fraction * total) for count in counts), default=None)
        if closest is None:
            assert not for_alphas
        else:
            assert abs(for_alphas.total() - fraction * total) == pytest.approx(closest)
            assert min(for_alphas.total(), for_weights.total()) >= K


def test_equal_cameras_are_chosen_by_the_seed():
    train = make_split([(identity, camera) for identity in range(30) for camera in (1, 2) for _ in range(4)])
    found = [divide_by_camera(train, 0.5, 4, seed).alphas for seed in (0, 0, 1)]
    assert found[0].paths.tolist() == found[1].paths.tolist() != found[2].paths.tolist()
    first = [cameras_of(found[0], identity)[1] == 4 for identity in range(30)]
    assert 5 < sum(first) < 25, "not always the same camera"


@given(splits(), FRACTIONS, st.integers(1, 3), SEEDS)
def test_identities_have_the_shares_of_msinet(train, fraction, K, seed):
    counts = Counter(train.identities.tolist())
    try:
        halves = divide_by_identity(train, fraction, K, seed)
    except DataError:
        assert min(counts.values()) < 2 * K
        return
    assert_nothing_is_lost(train, halves)
    weights, alphas = (set(half.identities.tolist()) for half in (halves.weights, halves.alphas))
    n = len(counts)
    assert len(alphas - weights) == round(2 * n / 5)
    assert len(weights - alphas) == round(n / 5) + halves.identities_without_alphas
    for identity in weights & alphas:
        of_alphas = int((halves.alphas.identities == identity).sum())
        share = min(max(round(fraction * counts[identity]), K), counts[identity] - K)
        assert of_alphas == share


def test_identities_are_shuffled_by_the_seed():
    train = make_split([(identity, camera) for identity in range(50) for camera in (1, 2) for _ in range(4)])
    own = []
    for seed in (0, 0, 1):
        halves = divide_by_identity(train, 0.5, 4, seed)
        own.append(sorted(set(halves.alphas.identities) - set(halves.weights.identities)))
    assert own[0] == own[1] != own[2]
    assert len(own[0]) == 20
    assert own[0] != list(range(30, 50))


@given(st.lists(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_labels_number_known_identities_first(identities, known):
    known_sorted = np.array(sorted(known), dtype=np.int64)
    labels = label(np.array(identities, dtype=np.int64), known_sorted)
    for identity, number in zip(identities, labels.tolist(), strict=True):
        if identity in known:
            assert known_sorted[number] == identity
        else:
            assert number >= len(known)
    assert len(set(labels.tolist())) == len(set(identities))


# The number of identities and of images of each, for each domain.
DOMAINS = st.lists(st.tuples(st.integers(4, 9), st.integers(2, 7)), min_size=2, max_size=4)


def domain_parts(domains: list[tuple[int, int]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Identities of all images, and the images of each domain."""
    sizes = [images for people, images in domains for _ in range(people)]
    identities = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum([people * images for people, images in domains])
    parts = np.split(np.arange(len(identities)), ends[:-1])
    return identities, {f"domain {number}": part for number, part in enumerate(parts)}


@given(DOMAINS, st.integers(0, 20), SEEDS)
def test_domains_take_turns_in_epochs_of_one_length(domains, batches, seed):
    identities, parts = domain_parts(domains)
    sampler = RotatingSampler(identities, parts, 8, 2, seed, batches=batches)
    needed = max(-(-people * -(-images // 2) // 4) for people, images in domains)
    assert len(sampler) >= (batches or needed)
    assert len(sampler) == batches or not batches
    for epoch in range(2 * len(parts)):
        sampler.epoch = epoch
        plan, part = sampler.global_batches(), list(parts.values())[epoch % len(parts)]
        assert plan.shape == (len(sampler), 8)
        assert set(plan.ravel()) <= set(part), "no image of another domain"
        if not batches:
            assert set(plan.ravel()) == set(part), "every image is shown"
        for batch in plan:
            assert set(Counter(identities[batch].tolist()).values()) == {2}, (
                "four identities, two images each"
            )


@given(DOMAINS, st.integers(0, 7), SEEDS)
def test_ranks_share_the_batches_of_one_process(domains, epoch, seed):
    identities, parts = domain_parts(domains)
    alone = RotatingSampler(identities, parts, 8, 2, seed)
    ranks = [RotatingSampler(identities, parts, 8, 2, seed, rank, 2) for rank in (0, 1)]
    for sampler in (alone, *ranks):
        sampler.epoch = epoch
    shares = [list(sampler) for sampler in ranks]
    assert list(alone) == [first + second for first, second in zip(*shares, strict=True)]


def test_a_rotating_sampler_resumes_in_the_middle_of_any_epoch():
    identities, parts = domain_parts([(4, 4), (6, 5), (5, 2)])
    through = RotatingSampler(identities, parts, 8, 2, 3)
    sequence, states = [], []
    for _ in range(4 * len(through)):
        states.append(through.state_dict())
        sequence.append(next(iter(through)))
        through.advance()
    for place, state in enumerate(states):
        resumed = RotatingSampler(identities, parts, 8, 2, 3)
        resumed.load_state_dict(state)
        assert next(iter(resumed)) == sequence[place]


def test_a_domain_that_is_too_small_is_named():
    identities, parts = domain_parts([(4, 4), (3, 4)])
    with pytest.raises(
        ConfigError, match=r"domain 1: data\.batch_size 8 .* has 3: use data\.batch_size at most 6"
    ):
        RotatingSampler(identities, parts, 8, 2, 0)
