"""Random features."""

from __future__ import annotations

import numpy as np

from autoreid.evaluation.features import FeatureSet


def random_features(rng: np.random.Generator, count: int) -> FeatureSet:
    """Return features in 6 dimensions of images of 5 people by 3 cameras, without paths."""
    features = rng.normal(size=(count, 6)).astype(np.float32)
    return FeatureSet(features, rng.integers(0, 5, count), rng.integers(0, 3, count), np.full(count, ""))
