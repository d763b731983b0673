"""The searches and trainings of a study."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoreid.config import Config
from autoreid.reporting.run_folder import RunFolder, steps_seconds
from autoreid.spaces.build import build_space
from autoreid.spaces.genotype import Genotype
from autoreid.trials.genotypes import Found, random_of_size, read_found
from autoreid.trials.trial import Trial, make_trial


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        searches: the config of each search, by name.
        recipe: of the trainings.
        num_random: number of random networks.
    """

    folder: Path
    searches: Mapping[str, Config]
    recipe: Config
    num_random: int

    def run_folder(self, name: str) -> RunFolder:
        """Return the run folder of a search."""
        return RunFolder(self.searches[name].output_dir / name)

    def is_finished(self, name: str) -> bool:
        """Return whether a search has its result."""
        return self.run_folder(name).result.exists()

    def found(self, name: str) -> Found:
        """Return what a finished search has found."""
        return read_found(self.run_folder(name).root)

    @property
    def trial_names(self) -> list[str]:
        """The names of all trainings."""
        found, random = range(len(self.searches)), range(self.num_random)
        return [*(f"found{number}" for number in found), *(f"random{number}" for number in random)]

    def trials(self, names: Collection[str]) -> dict[str, Trial]:
        """Return the trainings with these names, except those whose search has not finished."""
        trials = {}
        for number, search in enumerate(self.searches):
            if f"found{number}" in names and self.is_finished(search):
                trials[f"found{number}"] = self.found_trial(number, search)
        for number in range(self.num_random):
            if f"random{number}" in names and self.is_finished(self.like(number)):
                trials[f"random{number}"] = self.random_trial(number)
        return trials

    def like(self, number: int) -> str:
        """Return the name of the search whose network is as large as a random one."""
        return list(self.searches)[number % len(self.searches)]

    def found_trial(self, number: int, name: str) -> Trial:
        """Return the training of a found network."""
        return self._trial(self.found(name).genotype, number)

    def random_trial(self, number: int) -> Trial:
        """Return the training of a random network, which is as large as the network of one of the searches."""
        found = self.found(self.like(number))
        return self._trial(random_of_size(found, number, self.recipe.model.options), number)

    def _trial(self, genotype: Genotype, number: int) -> Trial:
        # Each network has its own seed, unless the seed also chooses the identities that it is measured on.
        own = 0 if self.recipe.evaluation.split == "held_out" else number
        return make_trial(self.recipe, genotype, self.recipe.seed + own, self.recipe.training.epochs)

    def examples(self) -> Iterator[Trial]:
        """Yield trainings of random networks of the space."""
        space = build_space(next(iter(self.searches.values())).search)
        rng = np.random.default_rng(0)
        while True:
            yield self._trial(space.random_genotype(rng), 0)

    def search_seconds(self, name: str) -> float:
        """Return how long the steps of a finished search took, and its read-out if that measures networks."""
        return steps_seconds(json.loads(self.run_folder(name).result.read_bytes()))
