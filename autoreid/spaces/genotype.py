"""What the genotypes of all spaces share: a JSON file that is parsed and validated, never evaluated."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from autoreid.errors import DataError
from autoreid.files import write_atomically
from autoreid.spaces.drawing import Drawing


class Genotype(BaseModel, ABC):
    """What every space's genotype has in common; equality compares all choices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    space: str

    def __str__(self) -> str:
        """A stable JSON text: equal genotypes give equal bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Writes the JSON text to a file, replacing it in one step; raises RunError when it cannot."""
        write_atomically(path, str(self).encode())

    @abstractmethod
    def sample_like(self, rng: np.random.Generator) -> Genotype:
        """Draws a genotype of the same space and shape uniformly: the baseline that a search has to beat."""

    @abstractmethod
    def drawings(self, caption: str) -> dict[str, Drawing]:
        """Describes the genotype's pictures, by what each shows; the caption is part of their titles."""

    @staticmethod
    def load(path: Path) -> Genotype:
        """Reads any space's genotype; raises DataError that names file, place and value."""
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot read the genotype: {error.strerror}") from error
        return Genotype.parse(text, str(path))

    @staticmethod
    def parse(text: str | bytes, where: str) -> Genotype:
        """Reads any space's genotype from its JSON text; raises DataError that names `where`, place and value."""
        try:
            return _any_space().validate_json(text)
        except ValidationError as error:
            raise DataError(f"{where}: not a genotype: {_explain(error)}") from error


def read_genotype(genotype: str) -> Genotype:
    """Reads a genotype from the path of its file or from its JSON text.

    Raises:
        DataError: it cannot be read, or is not a genotype.
    """
    if genotype.lstrip().startswith("{"):
        return Genotype.parse(genotype, "model.options.genotype")
    return Genotype.load(Path(genotype))


def _types() -> dict[str, type[Genotype]]:
    """The genotype class of each space, by the space's name."""
    # Imported here because the spaces import this module.
    from autoreid.spaces import SPACES

    return {name: space.genotype_type for name, space in SPACES.items()}


def _any_space() -> TypeAdapter[Any]:
    """Validates a genotype as the class that its `space` names."""
    union: Any = reduce(or_, _types().values())
    return TypeAdapter(Annotated[union, Field(discriminator="space")])


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong: its place in the file, why, and what was found."""
    first = error.errors()[0]
    if first["type"].startswith("union_tag"):
        return f"space: expected one of {', '.join(_types())} (found {first['ctx'].get('tag', 'none')})"
    # The first part of the place says which space's genotype it was taken for.
    place = ".".join(map(str, first["loc"][1:])) or "file"
    return f"{place}: {first['msg']} (found {repr(first['input'])[:60]})"
