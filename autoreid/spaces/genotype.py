"""The base class of all genotypes, and reading them: JSON that is parsed and validated, never evaluated."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from autoreid.config import expand
from autoreid.errors import DataError
from autoreid.files import write_atomically
from autoreid.spaces.drawing import Drawing


class Genotype(BaseModel, ABC):
    """The choices of a search. Each space has a subclass. Two genotypes are equal if all their choices are equal.

    Attributes:
        format: version of the JSON format.
        space: name of the space.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    space: str

    def __str__(self) -> str:
        """Return the JSON text. Equal genotypes have equal texts."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write the JSON text to a file atomically.

        Raises:
            RunError: the file cannot be written.
        """
        write_atomically(path, str(self).encode())

    @abstractmethod
    def sample_like(self, rng: np.random.Generator) -> Genotype:
        """Sample a genotype of the same space and size uniformly: the baseline that a search has to beat."""

    @abstractmethod
    def drawings(self, caption: str) -> dict[str, Drawing]:
        """Return the drawings of the genotype, by the name of what each shows.

        Args:
            caption: is part of the titles.
        """

    @staticmethod
    def load(path: Path) -> Genotype:
        """Load the genotype of any space from a file.

        Raises:
            DataError: the file cannot be read, or is not a genotype; the message names the file, key and value.
        """
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot read the genotype: {error.strerror}") from error
        return Genotype.parse(text, str(path))

    @staticmethod
    def parse(text: str | bytes, where: str) -> Genotype:
        """Parse the JSON text of a genotype of any space.

        Args:
            where: where the text comes from, for error messages.

        Raises:
            DataError: the text is not a genotype; the message names `where`, the key and the value.
        """
        try:
            return _any_space().validate_json(text)
        except ValidationError as error:
            raise DataError(f"{where}: not a genotype: {_explain(error)}") from error


def read_genotype(genotype: str) -> Genotype:
    """Read a genotype, given the path of its file or its JSON text.

    Raises:
        DataError: the file cannot be read, or is not a genotype.
    """
    if genotype.lstrip().startswith("{"):
        return Genotype.parse(genotype, "model.options.genotype")
    return Genotype.load(expand(Path(genotype)))


def with_genotype_text(options: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the path of a genotype by its JSON text, so that the options no longer depend on a file."""
    return {**options, "genotype": str(read_genotype(options["genotype"]))}


def _types() -> dict[str, type[Genotype]]:
    """Return the genotype class of each space, by the name of the space."""
    # Not imported at the top, because the spaces import this module.
    from autoreid.spaces.genotypes import GENOTYPES

    return GENOTYPES


def _any_space() -> TypeAdapter[Any]:
    """Return a validator that chooses the genotype class by the value of `space`."""
    union: Any = reduce(or_, _types().values())
    return TypeAdapter(Annotated[union, Field(discriminator="space")])


def _explain(error: ValidationError) -> str:
    """Return the first error: its key in the file, the reason, and the value found."""
    first = error.errors()[0]
    if first["type"].startswith("union_tag"):
        return f"space: expected one of {', '.join(_types())} (found {first['ctx'].get('tag', 'none')})"
    # The first part of the location is not a key of the file: it is the space.
    key = ".".join(map(str, first["loc"][1:])) or "file"
    return f"{key}: {first['msg']} (found {repr(first['input'])[:60]})"
