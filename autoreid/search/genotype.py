"""A genotype: which operations a search chose, as a JSON file that is parsed and validated, never evaluated."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
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

#: Blocks of the `osnet_ain` space, in the order of the alphas' columns: where instance norm stands.
OSNET_BLOCKS = ("plain", "in_inside", "in_after", "in_both")


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
    def draw_like(self, rng: np.random.Generator) -> AnyGenotype:
        """Draws a genotype of the same space and shape uniformly: the baseline that a search has to beat."""

    @staticmethod
    def load(path: Path) -> AnyGenotype:
        """Reads any space's genotype; raises DataError that names file, place and value."""
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot read the genotype: {error.strerror}") from error
        return Genotype.parse(text, str(path))

    @staticmethod
    def parse(text: str | bytes, where: str) -> AnyGenotype:
        """Reads any space's genotype from its JSON text; raises DataError that names `where`, place and value."""
        try:
            return _ANY_SPACE.validate_json(text)
        except ValidationError as error:
            raise DataError(f"{where}: not a genotype: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong: its place in the file, why, and what was found."""
    first = error.errors()[0]
    if first["type"].startswith("union_tag"):
        return f"space: expected one of reid_cell, osnet_ain (found {first['ctx'].get('tag', 'none')})"
    # The first part of the place says which space's genotype it was taken for.
    place = ".".join(map(str, first["loc"][1:])) or "file"
    return f"{place}: {first['msg']} (found {repr(first['input'])[:60]})"


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

    def draw_like(self, rng: np.random.Generator) -> CellGenotype:
        """With as many nodes, of Auto-ReID's operations."""
        return random_genotype(rng, nodes=len(self.normal))


def random_genotype(
    rng: np.random.Generator, nodes: int = 4, operations: Sequence[str] = CELL_OPERATIONS[:7]
) -> CellGenotype:
    """Draws a genotype uniformly: each node two different inputs, each edge any operation but `none`.

    It is the baseline that a search has to beat (arXiv 1902.07638).
    """
    choices = [name for name in operations if name != "none"]

    def draw_node(node: int) -> tuple[Edge, Edge]:
        older, newer = sorted(rng.choice(node + 2, size=2, replace=False).tolist())
        names = [choices[index] for index in rng.integers(len(choices), size=2)]
        return Edge(names[0], older), Edge(names[1], newer)

    normal, reduce = (tuple(draw_node(node) for node in range(nodes)) for _ in range(2))
    return CellGenotype(normal=normal, reduce=reduce)


_Block = Literal[OSNET_BLOCKS]  # type: ignore[valid-type]
_Stage = tuple[_Block, _Block]


class OsnetAinGenotype(Genotype):
    """Where OSNet's six blocks have instance norm: three stages of two blocks, each one of OSNET_BLOCKS."""

    space: Literal["osnet_ain"] = "osnet_ain"
    stages: tuple[_Stage, _Stage, _Stage]

    @property
    def blocks(self) -> tuple[str, ...]:
        """The six blocks in order."""
        return tuple(block for stage in self.stages for block in stage)

    @classmethod
    def of_blocks(cls, blocks: Sequence[str]) -> OsnetAinGenotype:
        """The genotype of six blocks in order."""
        return cls(stages=tuple(zip(blocks[::2], blocks[1::2], strict=True)))  # type: ignore[arg-type]

    def draw_like(self, rng: np.random.Generator) -> OsnetAinGenotype:
        """Any of the 4⁶."""
        return self.of_blocks([OSNET_BLOCKS[index] for index in rng.integers(len(OSNET_BLOCKS), size=6)])


AnyGenotype = CellGenotype | OsnetAinGenotype
_ANY_SPACE: TypeAdapter[AnyGenotype] = TypeAdapter(Annotated[AnyGenotype, Field(discriminator="space")])
