"""The `osnet_ain` space: where instance norm belongs in OSNet's six blocks (arXiv 1910.06827, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from autoreid.spaces.osnet_ain.derived import DerivedOSNet
from autoreid.spaces.osnet_ain.genotype import OSNET_BLOCKS, PUBLISHED_STEM, STEM_NORMS, OsnetAinGenotype
from autoreid.spaces.osnet_ain.supernet import BLOCKS, STEM, OsnetAinSupernet
from autoreid.spaces.space import Choices, Sample, Space

#: The module names of the six blocks, in order.
_POSITIONS = tuple(f"{stage}.{block}" for stage in ("conv2", "conv3", "conv4") for block in (0, 1))


class OsnetAinSpace(Space):
    """One of four blocks at each of six positions: 4,096 networks, or twice as many if the stem is searched."""

    network_type = DerivedOSNet

    def choices(self) -> dict[str, Choices]:
        """Return a group with a row for each block, two for each of the three stages, and one for a searched stem."""
        rows = tuple(f"stage{stage}_block{block}" for stage in (1, 2, 3) for block in (1, 2))
        choices = {BLOCKS: Choices(rows, OSNET_BLOCKS)}
        return choices | ({STEM: Choices(("norm",), STEM_NORMS)} if self._searches_stem else {})

    def watched(self) -> dict[str, tuple[str, ...]]:
        """Return the candidates that have instance norm."""
        return {"in_share": (*OSNET_BLOCKS[1:], "instance_norm")}

    def build_supernet(self, num_identities: int) -> OsnetAinSupernet:
        """Build the supernet, with random weights from torch's generator."""
        recomputes = self.search.activation_checkpointing == "cell"
        return OsnetAinSupernet(self.search.osnet_ain.width, num_identities, recomputes, self._searches_stem)

    def genotype(self, probabilities: Mapping[str, Tensor]) -> OsnetAinGenotype:
        """Read the most probable candidate of each row. The first one wins a tie."""
        return self._of_columns({name: values.argmax(-1).tolist() for name, values in probabilities.items()})

    def random_genotype(self, rng: np.random.Generator) -> OsnetAinGenotype:
        """Sample one of all genotypes uniformly."""
        columns = {name: rng.integers(shape[1], size=shape[0]) for name, shape in self._shapes().items()}
        return self._of_columns({name: values.tolist() for name, values in columns.items()})

    def path(self, genotype: OsnetAinGenotype) -> Sample:
        """Return the columns of the six blocks, and that of a searched stem."""
        path = {BLOCKS: [OSNET_BLOCKS.index(block) for block in genotype.blocks]}
        return path | ({STEM: [STEM_NORMS.index(genotype.stem)]} if self._searches_stem else {})

    def mutated(self, genotype: OsnetAinGenotype, rng: np.random.Generator) -> OsnetAinGenotype:
        """Return a genotype with another candidate in one random row."""
        columns = {name: list(values) for name, values in self.path(genotype).items()}
        places = [(name, row, shape[1]) for name, shape in self._shapes().items() for row in range(shape[0])]
        name, row, candidates = places[int(rng.integers(len(places)))]
        others = [column for column in range(candidates) if column != columns[name][row]]
        columns[name][row] = others[int(rng.integers(len(others)))]
        return self._of_columns(columns)

    def inherited(self, weights: Mapping[str, Tensor], genotype: OsnetAinGenotype) -> dict[str, Tensor]:
        """Select the weights of the chosen candidates, and all weights that the candidates share."""
        chosen = dict(zip(_POSITIONS, genotype.blocks, strict=True)) | {"conv1.norms": genotype.stem}
        found = {}
        for name, value in weights.items():
            stage, place, *rest = name.split(".", 3)
            candidate = chosen.get(f"{stage}.{place}")
            if candidate is None:
                found[name] = value
            elif rest[0] == candidate:
                # A fixed stem has a single norm, bn.
                found[f"{stage}.{'bn' if place == 'norms' else place}.{rest[1]}"] = value
        return found

    @property
    def _searches_stem(self) -> bool:
        return self.search.osnet_ain.stem_norm == "searched"

    def _shapes(self) -> dict[str, tuple[int, int]]:
        return {name: group.shape for name, group in self.choices().items()}

    @staticmethod
    def _of_columns(columns: Mapping[str, Sequence[int]]) -> OsnetAinGenotype:
        stem = STEM_NORMS[columns[STEM][0]] if STEM in columns else PUBLISHED_STEM
        return OsnetAinGenotype.of_blocks([OSNET_BLOCKS[column] for column in columns[BLOCKS]], stem)
