"""Time to plan an epoch of identity-balanced batches, compared with a sampler in pure Python.

python benchmarks/sampler.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from autoreid.data.sampler import IdentityBalancedSampler

BATCH_SIZE, IMAGES_PER_IDENTITY = 64, 4
#: By name: images, identities and interleaved repetitions.
SIZES = {
    "Market-1501": (12_936, 751, 15),
    "100 k images": (100_000, 10_000, 5),
    "1 M images": (1_000_000, 100_000, 1),
}
QUICK = ("Market-1501", "100 k images")


def uneven_identities(images: int, identities: int) -> npt.NDArray[np.int64]:
    """Return the identities (images,) in random order, with 2 to about 70 images each, as in Market-1501."""
    rng = np.random.default_rng(0)
    share = rng.gamma(3.0, size=identities)
    counts = 2 + rng.multinomial(images - 2 * identities, share / share.sum())
    return rng.permutation(np.repeat(np.arange(identities), counts))


def python_epoch(index: dict[int, list[int]], batch_size: int, K: int, seed: int) -> list[list[int]]:
    """Sample an epoch as the common RandomIdentitySampler does, with dictionaries and one identity at a time."""
    rng = random.Random(seed)
    groups: dict[int, list[list[int]]] = {}
    for identity, images in index.items():
        chosen = copy.copy(images)
        if len(chosen) < K:
            chosen = rng.choices(chosen, k=K)
        rng.shuffle(chosen)
        groups[identity] = [chosen[start : start + K] for start in range(0, len(chosen) - K + 1, K)]
    available, batches = list(groups), []
    while len(available) >= batch_size // K:
        batch: list[int] = []
        for identity in rng.sample(available, batch_size // K):
            batch += groups[identity].pop()
            if not groups[identity]:
                available.remove(identity)
        batches.append(batch)
    return batches


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def measure(images: int, identities: int, repetitions: int) -> dict[str, float]:
    """Return the median seconds of both samplers, over interleaved repetitions."""
    numbers = uneven_identities(images, identities)
    index = defaultdict(list)
    for image, identity in enumerate(numbers.tolist()):
        index[identity].append(image)
    sampler = IdentityBalancedSampler(numbers, BATCH_SIZE, IMAGES_PER_IDENTITY, seed=0)
    setup = timed(IdentityBalancedSampler, numbers, BATCH_SIZE, IMAGES_PER_IDENTITY, 0)
    ours, usual = [], []
    for epoch in range(repetitions):
        sampler.epoch = epoch
        ours.append(timed(list, sampler))
        usual.append(timed(python_epoch, index, BATCH_SIZE, IMAGES_PER_IDENTITY, epoch))
    median, baseline = float(np.median(ours)), float(np.median(usual))
    return {
        "images": images,
        "identities": identities,
        "setup_seconds": setup,
        "epoch_seconds": median,
        "python_epoch_seconds": baseline,
        "ratio": median / baseline,
    }


def main() -> None:
    """Measure, and print a table or a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="skip the largest size")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    names = QUICK if arguments.quick else tuple(SIZES)
    results = {name: measure(*SIZES[name]) for name in names}
    if arguments.json:
        print(json.dumps({"benchmark": "sampler", "numpy": np.__version__, "sizes": results}))
        return
    print(f"batch {BATCH_SIZE}, {IMAGES_PER_IDENTITY} images an identity; numpy {np.__version__}")
    print(f"{'':14}{'set-up':>12}{'epoch':>12}{'Python':>12}{'ratio':>8}")
    for name, row in results.items():
        times = (
            f"{row[key] * 1e3:9.1f} ms" for key in ("setup_seconds", "epoch_seconds", "python_epoch_seconds")
        )
        print(f"{name:14}" + "".join(times) + f"{row['ratio']:8.3f}")


if __name__ == "__main__":
    main()
