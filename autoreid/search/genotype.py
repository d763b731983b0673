"""A genotype: which operations a search chose, as a JSON file that is parsed and validated, never evaluated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError, field_validator

from autoreid.errors import DataError
from autoreid.files import write_atomically

#: Operations that a cell of the `reid_cell` space may use, in the order of the alphas' columns.
#: `none` may take an edge's weight during the search but never an edge of a genotype.
CELL_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "part_aware",
    "sep_conv_5x5",
    "dil_conv_5x5",
)


class Genotype(BaseModel):
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

    @staticmethod
    def load(path: Path) -> CellGenotype:
        """Reads any space's genotype; raises DataError that names file, place and value."""
        try:
            return _ANY_SPACE.validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot read the genotype: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "file"
            value = repr(first["input"])[:60]
            raise DataError(f"{path}: not a genotype: {place}: {first['msg']} (found {value})") from error


class Edge(NamedTuple):
    """One incoming edge of a node: 0 is the cell before the last (c_{k-2}), 1 the last one (c_{k-1}),
    2 and on are the nodes of this cell.
    """

    operation: str
    source: StrictInt


Cell = tuple[tuple[Edge, Edge], ...]


class CellGenotype(Genotype):
    """A normal and a reduction cell, two incoming edges a node; a cell's output concatenates its nodes."""

    space: Literal["reid_cell"] = "reid_cell"
    normal: Cell
    reduce: Cell

    @field_validator("normal", "reduce")
    @classmethod
    def _check_cell(cls, cell: Cell) -> Cell:
        if not cell:
            raise ValueError("a cell has at least one node")
        for node, edges in enumerate(cell):
            for operation, source in edges:
                if operation == "none" or operation not in CELL_OPERATIONS:
                    known = ", ".join(CELL_OPERATIONS[1:])
                    raise ValueError(f"node {node}: unknown operation {operation!r}; known are {known}")
                if not 0 <= source < node + 2:
                    raise ValueError(f"node {node}: its input must be 0 to {node + 1}, not {source}")
            if edges[0].source == edges[1].source:
                raise ValueError(f"node {node}: both edges come from input {edges[0].source}")
        return cell

    def cells(self) -> Iterator[tuple[str, Cell]]:
        """The two kinds of cell, by name."""
        yield "normal", self.normal
        yield "reduce", self.reduce


# A discriminated union, so that a second space is one more member.
_ANY_SPACE: TypeAdapter[CellGenotype] = TypeAdapter(Annotated[CellGenotype, Field()])
