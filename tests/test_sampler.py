from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.errors import ConfigError

MAX_WORLD = 4


@st.composite
def training_sets(draw):
    """(identities, batch size, K, seed), with one to many images per identity and batches of up to all of them."""
    identities = draw(st.integers(1, 40))
    most = draw(st.sampled_from([1, 3, 7, 60]))
    counts = draw(st.lists(st.integers(1, most), min_size=identities, max_size=identities))
    K = draw(st.integers(1, min(5, max(counts))))
    P = draw(st.one_of(st.integers(1, identities), st.just(identities)))
    numbers = np.repeat(np.arange(identities) * 3 - 1, counts)
    seed = draw(st.integers(0, 1000))
    return np.random.default_rng(seed).permutation(numbers), P * K, K, seed


def finish_epoch(sampler):
    """Return all remaining batches of the epoch, marking each as used."""
    batches = list(sampler)
    for _ in batches:
        sampler.advance()
    return batches


@settings(max_examples=200, deadline=None)
@given(training_sets())
def test_every_epoch_keeps_the_rules(problem):
    identities, batch_size, K, _ = problem
    P = batch_size // K
    sampler = IdentityBalancedSampler(*problem)
    counts = dict(zip(*np.unique(identities, return_counts=True), strict=True))
    groups = sum(-(-n // K) for n in counts.values())
    for epoch in range(3):
        assert (sampler.epoch, sampler.batch) == (epoch, 0)
        batches = np.array(finish_epoch(sampler))
        # The smallest number of batches that can contain every image, with no identity twice in a batch.
        assert len(sampler) == len(batches) == max(-(-groups // P), *(-(-n // K) for n in counts.values()), 1)
        assert np.array_equal(np.unique(batches), np.arange(len(identities)))
        for batch in batches:
            rows = identities[batch].reshape(P, K)
            assert (rows == rows[:, :1]).all()
            assert len(set(rows[:, 0])) == P
            for images, identity in zip(batch.reshape(P, K), rows[:, 0], strict=True):
                assert len(set(images)) == min(K, counts[identity])


@settings(max_examples=100, deadline=None)
@given(training_sets(), st.sampled_from([2, MAX_WORLD]), st.integers(0, 10**6))
def test_ranks_share_the_batches_of_one_process(problem, world_size, stop):
    _, batch_size, K, _ = problem
    P = batch_size // K
    if P % world_size:
        with pytest.raises(ConfigError, match=f"multiple of {K * world_size}"):
            IdentityBalancedSampler(*problem, 0, world_size)
        return
    alone = IdentityBalancedSampler(*problem)
    first = finish_epoch(alone)
    second = list(alone)
    ranks = [IdentityBalancedSampler(*problem, rank, world_size) for rank in range(world_size)]
    shares = [finish_epoch(sampler) for sampler in ranks]
    assert np.hstack(shares).tolist() == first

    # Interrupted in the second epoch, resumed with a single process.
    for _ in range(stop % len(alone)):
        ranks[1].advance()
    resumed = IdentityBalancedSampler(*problem)
    resumed.load_state_dict(ranks[1].state_dict())
    assert (resumed.epoch, list(resumed)) == (1, second[stop % len(alone) :])


def market_like(identities=60, seed=0):
    counts = np.random.default_rng(seed).integers(2, 30, identities)
    return np.repeat(np.arange(identities), counts)


@st.composite
def cameras_of_training_sets(draw):
    """A training set, and the camera of each image: few or many, evenly or unevenly used."""
    problem = draw(training_sets())
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    cameras = draw(st.sampled_from([1, 2, 3, 8]))
    shares = rng.dirichlet(np.full(cameras, draw(st.sampled_from([0.3, 100.0]))))
    return problem, rng.choice(cameras, len(problem[0]), p=shares) * 5


@settings(max_examples=200, deadline=None)
@given(cameras_of_training_sets())
def test_cameras_are_mixed_as_far_as_possible_and_every_rule_holds(arguments):
    (identities, batch_size, K, seed), cameras = arguments
    sampler = IdentityBalancedSampler(identities, batch_size, K, seed, cameras=cameras)
    plain = IdentityBalancedSampler(identities, batch_size, K, seed)
    for _ in range(2):
        batches, others = (np.array(finish_epoch(one)) for one in (sampler, plain))
        assert batches.shape == others.shape
        groups, others = batches.reshape(-1, K), others.reshape(-1, K)
        assert (identities[groups] == identities[groups[:, :1]]).all()
        for identity in np.unique(identities):
            count = np.sum(identities == identity)
            own, plain_own = (every[identities[every[:, 0]] == identity] for every in (groups, others))
            assert all(len(set(group)) == min(K, count) for group in own)
            used, plain_used = (np.unique(every, return_counts=True)[1] for every in (own, plain_own))
            assert len(used) == count
            assert sorted(used) == sorted(plain_used), "every image is used as often as without the cameras"
            if K > 1:
                rare = count - np.bincount(cameras[identities == identity]).max()
                mixed = sum(len(set(cameras[group])) > 1 for group in own)
                assert mixed >= min(rare, -(-count // K)), "no other order mixes more groups"


def numbers_per_camera(images, cameras):
    """All ways to divide images among at most this many cameras, the largest number first."""
    if not images:
        yield ()
    elif cameras:
        for largest in range(images, 0, -1):
            rest = numbers_per_camera(images - largest, cameras - 1)
            yield from ((largest, *others) for others in rest if not others or others[0] <= largest)


@pytest.mark.parametrize("K", [2, 3, 4, 5])
def test_cameras_are_mixed_for_all_small_numbers_of_images(K):
    """One identity with up to 16 images from up to three cameras, also if its images are used again in an epoch."""
    for images in range(K, 17):
        for numbers in numbers_per_camera(images, 3):
            cameras = np.repeat(np.arange(len(numbers)), numbers)
            least = min(images - max(numbers), -(-images // K))
            for batches in (0, 2 * images // K):
                sampler = IdentityBalancedSampler(
                    np.zeros(images, int), K, K, 0, batches=batches, cameras=cameras
                )
                mixed = [len(set(cameras[group])) > 1 for group in finish_epoch(sampler)]
                assert sum(mixed) >= least, (numbers, batches)


def test_every_group_gets_one_of_the_rare_images():
    """12 images of one camera and 4 of others: each of the four groups gets one of the four."""
    cameras = np.tile([7] * 12 + [1, 2, 3, 3], 2)
    for seed in range(20):
        sampler = IdentityBalancedSampler(np.repeat([4, 9], 16), 8, 4, seed, cameras=cameras)
        groups = np.array(finish_epoch(sampler)).reshape(-1, 4)
        assert (np.sum(cameras[groups] != 7, axis=1) == 1).all()


def test_iterating_does_not_move_the_position():
    sampler = IdentityBalancedSampler(market_like(), 16, 4, seed=3)
    assert list(sampler) == list(sampler)
    state = sampler.state_dict()
    sampler.advance()
    assert list(sampler) != []
    assert sampler.state_dict() == state | {"batch": 1}


def test_feeds_a_loader_that_fetches_ahead():
    identities = market_like()
    sampler = IdentityBalancedSampler(identities, 16, 4, seed=3)
    loader = DataLoader(np.arange(len(identities)), batch_sampler=sampler)
    assert len(loader) == len(sampler)
    assert [batch.tolist() for batch in loader] == list(sampler)


def test_order_changes_with_epoch_and_seed():
    one, other = (IdentityBalancedSampler(market_like(), 16, 4, seed) for seed in (0, 1))
    assert list(one) != list(other)
    epochs = [finish_epoch(one) for _ in range(4)]
    batches = {tuple(sorted(batch)) for epoch in epochs for batch in epoch}
    assert len(batches) == 4 * len(one)


def test_identities_meet_in_about_equal_measure():
    """Over many epochs of identities with equally many images, each pair shares a batch as often as by chance.

    Neither the groups of one identity nor neighbours in the random order may be tied to the same batches:
    the number of batches that a pair shares must have a Poisson-like spread around the mean.
    """
    identities, P, epochs = 24, 4, 300
    numbers = np.repeat(np.arange(identities), 10)
    sampler = IdentityBalancedSampler(numbers, 2 * P, 2, seed=0)
    meetings = np.zeros((identities, identities))
    within_epoch = []
    for _ in range(epochs):
        once = np.zeros_like(meetings)
        for batch in finish_epoch(sampler):
            present = numbers[batch[::2]]
            once[np.ix_(present, present)] += 1
        meetings += once
        within_epoch.append(once[np.triu_indices(identities, 1)].var())
    pairs = meetings[np.triu_indices(identities, 1)]
    # Each batch of 30 contains 6 of the 276 pairs.
    mean = epochs * 30 * 6 / 276
    assert pairs.mean() == pytest.approx(mean)
    assert np.abs(pairs - mean).max() < 5 * np.sqrt(mean)
    # Within an epoch, too: tied pairs would cluster (variance above the mean).
    assert np.mean(within_epoch) < 1.1 * mean / epochs


def test_image_positions_within_an_epoch_are_even():
    """An image appears early as often as late."""
    numbers = market_like(12)
    sampler = IdentityBalancedSampler(numbers, 12, 3, seed=0)
    when = np.zeros(len(numbers))
    epochs = 200
    for _ in range(epochs):
        shown = np.array(finish_epoch(sampler))
        step = np.broadcast_to(np.arange(len(shown))[:, None], shown.shape)
        totals, times = np.zeros(len(numbers)), np.zeros(len(numbers))
        np.add.at(totals, shown, step)
        np.add.at(times, shown, 1)
        when += totals / times
    middle, spread = (len(sampler) - 1) / 2, len(sampler) / np.sqrt(12 * epochs)
    assert np.abs(when / epochs - middle).max() < 5 * spread


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((62, 4, 0, 0, 1), "data.batch_size 62 with data.images_per_identity 4 .* of 4, such as 60 or 64"),
        ((20, 4, 0, 0, 4), "on 4 ranks.* multiple of 16, such as 16 or 32"),
        ((4, 4, 0, 0, 2), "multiple of 8, such as 8"),
        ((0, 4, 0, 0, 1), "multiple of 4, such as 4"),
        ((64, 4, 0, 0, 1), "needs 16 identities .* set has 10: use data.batch_size at most 40"),
        ((64, 4, 0, 0, 4), "at most 32"),
        ((64, 4, 0, 0, 16), "at most 10 ranks"),
        ((24, 8, 0, 0, 1), "data.images_per_identity is 8, but no identity .* more than 6 images"),
    ],
)
def test_impossible_batches_are_explained(arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        IdentityBalancedSampler(np.repeat(np.arange(10), 6), *arguments)
    assert "\n" not in str(error.value)


def test_empty_training_set_and_unknown_rank_are_refused():
    with pytest.raises(ConfigError, match="empty"):
        IdentityBalancedSampler(np.zeros(0, np.int64), 8, 4, 0)
    with pytest.raises(ValueError, match="rank 2"):
        IdentityBalancedSampler(np.arange(8), 8, 1, 0, 2, 2)


def test_state_of_other_settings_is_refused():
    numbers = market_like()
    state = IdentityBalancedSampler(numbers, 16, 4, seed=1).state_dict()
    for changed in ((16, 4, 2), (32, 4, 1), (16, 2, 1)):
        with pytest.raises(ConfigError, match="resume with the settings"):
            IdentityBalancedSampler(numbers, *changed).load_state_dict(state)
    with pytest.raises(ConfigError, match="training set"):
        IdentityBalancedSampler(numbers, 16, 4, seed=1).load_state_dict(state | {"batch": 10**6})


def test_epochs_of_a_state_are_taken_in_turn():
    sampler = IdentityBalancedSampler(market_like(), 16, 4, seed=1)
    positions = []
    for _ in range(2 * len(sampler) + 1):
        positions.append((sampler.epoch, sampler.batch))
        sampler.advance()
    assert all(a < b for a, b in pairwise(positions))
    assert positions[-1] == (2, 0)
