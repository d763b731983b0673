"""The genotype of the `reid_cell` space: a normal and a reduction cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import StrictInt, field_validator

from autoreid.config import CELL_OPERATIONS, DEFAULT_CELL_OPERATIONS
from autoreid.spaces.drawing import Drawing
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.reid_cell.drawing import cell_drawing


class Edge(NamedTuple):
    """An incoming edge of a node.

    Attributes:
        operation: name of the operation.
        source: where the edge starts: 0 is the cell before the previous one (c_{k-2}), 1 the previous cell (c_{k-1}),
            and 2 + i is node i of this cell.
    """

    operation: str
    source: StrictInt


Cell = tuple[tuple[Edge, Edge], ...]


class CellGenotype(Genotype):
    """A normal and a reduction cell. Each node has two incoming edges; a cell's output concatenates its nodes."""

    space: Literal["reid_cell"] = "reid_cell"
    normal: Cell
    reduce: Cell

    @field_validator("normal", "reduce")
    @classmethod
    def _check_cell(cls, cell: Cell) -> Cell:
        if not cell:
            raise ValueError("a cell must have at least one node")
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
        """Yield the name and the cell of both kinds."""
        yield "normal", self.normal
        yield "reduce", self.reduce

    def drawings(self, caption: str) -> dict[str, Drawing]:
        """Return the drawings of the normal and the reduction cell."""
        return {kind: cell_drawing(cell, kind, caption) for kind, cell in self.cells()}

    def sample_like(self, rng: np.random.Generator) -> CellGenotype:
        """Sample a genotype with the same number of nodes, from the operations of Auto-ReID."""
        return random_genotype(rng, nodes=len(self.normal))


def random_genotype(
    rng: np.random.Generator, nodes: int = 4, operations: Sequence[str] = DEFAULT_CELL_OPERATIONS
) -> CellGenotype:
    """Sample a genotype uniformly: two different inputs for each node, any operation but `none` for each edge.

    This is the baseline that a search has to beat (arXiv 1902.07638).
    """
    choices = [name for name in operations if name != "none"]

    def sample_node(node: int) -> tuple[Edge, Edge]:
        older, newer = sorted(rng.choice(node + 2, size=2, replace=False).tolist())
        names = [choices[index] for index in rng.integers(len(choices), size=2)]
        return Edge(names[0], older), Edge(names[1], newer)

    normal, reduce = (tuple(sample_node(node) for node in range(nodes)) for _ in range(2))
    return CellGenotype(normal=normal, reduce=reduce)


def count_skips(cell: Sequence[Sequence[tuple[str, int]]]) -> int:
    """Count the skip_connect edges of a cell. DARTS+ stops when the normal cell has two."""
    return sum(operation == "skip_connect" for node in cell for operation, _ in node)
