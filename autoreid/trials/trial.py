"""A trial: one training of a derived network, measured once at its end."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoreid.config import Config, Training
from autoreid.errors import ConfigError, DataError
from autoreid.spaces.genotype import Genotype

#: Sections that determine the result of a training, and their keys that do not.
_DETERMINING: dict[str, set[str]] = {
    "data": {"root", "cache", "workers"},
    "model": {"weights"},
    "losses": set(),
    "training": {"compile", "cuda_graphs"},
    "evaluation": {"batch_size", "every_epochs"},
}


@dataclass(frozen=True)
class Trial:
    """One training of a derived network.

    Attributes:
        config: complete; the genotype is part of `model.options` as text.
        genotype: the genotype of the network.
    """

    config: Config
    genotype: Genotype

    @property
    def key(self) -> str:
        """A digest of everything that determines the result: genotype, recipe, seed and epochs.

        Names, paths and keys with default values are left out. A key that a later version adds, with a default that
        keeps the old behaviour, therefore does not change the digest. Initial weights count by the content of their
        file.

        Raises:
            DataError: the file of the initial weights cannot be read.
        """
        content: dict[str, Any] = {
            name: getattr(self.config, name).model_dump(mode="json", exclude_defaults=True, exclude=left_out)
            for name, left_out in _DETERMINING.items()
        }
        content["seed"] = self.config.seed
        weights = self.config.model.weights
        if weights is not None:
            try:
                content["weights"] = _digest_of_file(weights, weights.stat().st_mtime_ns)
            except OSError as error:
                raise DataError(f"model.weights: {weights}: {error.strerror or error}") from error
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


@functools.cache
def _digest_of_file(path: Path, modified: int) -> str:  # noqa: ARG001 (a part of the cache's key)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_trial(recipe: Config, genotype: Genotype, seed: int, epochs: int) -> Trial:
    """Return the trial of a genotype: the recipe with this seed, compressed to this number of epochs."""
    options = {**recipe.model.options, "genotype": str(genotype)}
    update = {
        "seed": seed,
        "model": recipe.model.model_copy(update={"options": options}),
        "training": _compressed(recipe.training, epochs),
        "evaluation": recipe.evaluation.model_copy(update={"every_epochs": epochs}),
    }
    return Trial(recipe.model_copy(update=update), genotype)


def _compressed(training: Training, epochs: int) -> Training:
    """Return the settings for another number of epochs, with every phase as long in proportion."""

    def scaled(length: int) -> int:
        return int(length * epochs / training.epochs + 0.5)

    update = {
        "epochs": epochs,
        "milestones": tuple(max(1, scaled(milestone)) for milestone in training.milestones),
        "warmup_epochs": scaled(training.warmup_epochs),
        "frozen_epochs": scaled(training.frozen_epochs),
        "flat_epochs": min(scaled(training.flat_epochs), epochs - 1),
    }
    return training.model_copy(update=update)


def require_derived(config: Config, path: Path) -> None:
    """Raise ConfigError if a recipe does not train derived networks."""
    if config.task != "train" or config.model.name != "derived":
        raise ConfigError(
            f"{path}: must have task: train and model.name: derived, as configs/retrain.yaml does"
        )


def require_held_out(config: Config, path: Path) -> None:
    """Raise ConfigError if a recipe measures on test images, which a choice between networks must not see."""
    if config.evaluation.split != "held_out":
        raise ConfigError(
            f"{path}: evaluation.split: {config.evaluation.split}: networks must not be chosen by the test images; "
            f"add evaluation.split=held_out data.held_out_fraction=0.2"
            + (" data.targets=[]" if config.data.targets else "")
        )
