"""Relaxations: how mixing weights are computed from alphas. Any relaxation works with any space.

Alphas are logits in all of them. The published code of OSNet-AIN keeps weights w and uses log(ReLU(w)) as logits: a
weight that has become negative has no gradient any more and stays there.
"""

from __future__ import annotations

from autoreid.config import Config
from autoreid.search.relaxations.drnas import DrNAS
from autoreid.search.relaxations.gumbel import GDAS, GumbelSoftmax, HardGumbelSoftmax
from autoreid.search.relaxations.path_sampling import PathSampling
from autoreid.search.relaxations.relaxation import Level, Relaxation, Softmax
from autoreid.search.relaxations.smooth_darts import SmoothDARTS
from autoreid.search.schedules import TemperatureSchedule
from autoreid.seeding import derive_seed
from autoreid.spaces.space import Space

__all__ = [
    "GDAS",
    "DrNAS",
    "GumbelSoftmax",
    "HardGumbelSoftmax",
    "Level",
    "PathSampling",
    "Relaxation",
    "SmoothDARTS",
    "Softmax",
    "build_relaxation",
]


def build_relaxation(config: Config, space: Space, steps_per_epoch: int) -> Relaxation:
    """Build the config's relaxation."""
    name, seed = config.search.relaxation, derive_seed(config.seed, "gumbel")
    temperature = TemperatureSchedule(config.search.temperature, steps_per_epoch, config.training.epochs)
    match name:
        case "softmax":
            return Softmax()
        case "gumbel":
            return GumbelSoftmax(seed, temperature)
        case "gumbel_hard":
            return HardGumbelSoftmax(seed, temperature)
        case "gdas":
            return GDAS(seed, temperature)
        case "drnas":
            return DrNAS(derive_seed(config.seed, name))
        case "sdarts":
            return SmoothDARTS(derive_seed(config.seed, name), config.training.epochs * steps_per_epoch)
        case "uniform" | "fair":
            return PathSampling(space, derive_seed(config.seed, name), name == "fair")
        case _:
            raise AssertionError(f"{name}: add a branch")
