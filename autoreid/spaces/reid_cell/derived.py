"""The network that a genotype of the `reid_cell` space describes: a sequence of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from autoreid.errors import ConfigError
from autoreid.layers.heads import BNNeck
from autoreid.layers.pooling import AveragePool, build_pooling
from autoreid.spaces.drawing import Drawing
from autoreid.spaces.reid_cell.cells import build_preprocess
from autoreid.spaces.reid_cell.genotype import Cell, CellGenotype
from autoreid.spaces.reid_cell.macro import STEMS, CellPlan, build_stem, plan_cells
from autoreid.spaces.reid_cell.network_drawing import network_drawing
from autoreid.spaces.reid_cell.operations import Skip, build_operation
from autoreid.spaces.space import Derived

_STAGES = "must be a list of the cells in each stage, each 1 or more, such as [2, 2, 2, 2]"


class DerivedCell(nn.Module):
    """A cell of a genotype. Each node has two incoming edges; the output concatenates the nodes."""

    def __init__(self, cell: Cell, plan: CellPlan, parts: int) -> None:
        super().__init__()
        older, newer = plan.in_channels
        self.preprocess0 = build_preprocess(older, plan.channels, plan.after_reduction, affine=True)
        self.preprocess1 = build_preprocess(newer, plan.channels, False, affine=True)
        edges = [edge for node in cell for edge in node]
        self.sources = [edge.source for edge in edges]
        self.edges = nn.ModuleList(
            build_operation(
                edge.operation,
                plan.channels,
                2 if plan.kind == "reduce" and edge.source < 2 else 1,
                affine=True,
                parts=parts,
            )
            for edge in edges
        )

    def forward(self, x0: Tensor, x1: Tensor, drop_path: float) -> Tensor:
        """Compute the output (B, nodes·C, H, W), or (B, nodes·C, ⌈H/2⌉, ⌈W/2⌉) in a reduction cell.

        Args:
            x0: output of the cell before the previous one.
            x1: output of the previous cell, (B, C', H, W).
            drop_path: probability that an edge is dropped for an image. Identity edges are never dropped.
        """
        states = [self.preprocess0(x0), self.preprocess1(x1)]
        pairs = list(zip(self.sources, self.edges, strict=True))
        for first, second in zip(pairs[::2], pairs[1::2], strict=True):
            states.append(self._edge(states, *first, drop_path) + self._edge(states, *second, drop_path))
        return torch.cat(states[2:], dim=1)

    def _edge(self, states: list[Tensor], source: int, operation: nn.Module, drop_path: float) -> Tensor:
        output: Tensor = operation(states[source])
        if isinstance(operation, Skip) or not drop_path:
            return output
        return stochastic_depth(output, drop_path, "row", self.training)


class AuxiliaryHead(nn.Sequential):
    """A second classifier in the middle of the network, used in training only (DARTS, arXiv 1806.09055).

    Its pooling gives 2×2 for any size of the feature map, while that of DARTS requires 8×8.
    """

    def __init__(self, channels: int, num_identities: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.ReLU(),
            AveragePool(2, 2),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(inplace=True),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(768, num_identities)


class DerivedNetwork(Derived):
    """The cells of a genotype, stacked as in the supernet, with a BNNeck.

    Args:
        num_identities: number of outputs of the classifier.
        genotype: the normal and the reduction cell.
        channels: C of the nodes in the first stage; each reduction cell doubles it.
        cells_per_stage: number of cells in each stage. All stages but the first begin with a reduction cell.
        stem: "resnet" reduces the resolution to 1/4; "darts" keeps it.
        parts: number of body parts in the part-aware operation.
        drop_path: probability that an edge is dropped for an image in training. `set_epoch` lets it grow linearly
            from 0 to this value.
        auxiliary: whether to add an auxiliary head after the cell at 2/3 of the depth.
        pooling: a name from `POOLINGS`.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        num_identities: int,
        genotype: CellGenotype,
        channels: int = 16,
        cells_per_stage: Sequence[int] = (2, 2, 2, 2),
        stem: str = "resnet",
        parts: int = 4,
        drop_path: float = 0.0,
        auxiliary: bool = False,
        pooling: str = "average",
    ) -> None:
        super().__init__()
        _check(channels, cells_per_stage, stem, parts, drop_path)
        self.genotype: CellGenotype = genotype
        self.drop_path = self._last_drop_path = drop_path
        cells = dict(self.genotype.cells())
        nodes = {kind: len(cell) for kind, cell in cells.items()}
        self.plans = plan_cells(channels, cells_per_stage, nodes)
        self.stem = build_stem(stem, channels)
        self.cells = nn.ModuleList(DerivedCell(cells[plan.kind], plan, parts) for plan in self.plans)
        self.embedding_size = self.plans[-1].out_channels
        self.pool = build_pooling(pooling)
        self.neck = BNNeck(self.embedding_size, num_identities)
        self.auxiliary_after = 2 * len(self.plans) // 3
        self.auxiliary: AuxiliaryHead | None = None
        self.has_auxiliary = auxiliary
        if auxiliary:
            self.auxiliary = AuxiliaryHead(self.plans[self.auxiliary_after].out_channels, num_identities)

    def last_map(self) -> nn.Module:
        """Return the last cell."""
        return self.cells[-1]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Embed images (B, 3, H, W).

        Returns:
            In evaluation mode, the embedding (B, D) after the neck's norm, which is used for ranking. In training mode,
            the embedding before the norm, the logits (B, identities), and the logits of the auxiliary head if there is
            one.
        """
        x0 = x1 = self.stem(images)
        auxiliary: list[Tensor] = []
        for index, cell in enumerate(self.cells):
            x0, x1 = x1, cell(x0, x1, self.drop_path)
            if self.auxiliary is not None and self.training and index == self.auxiliary_after:
                auxiliary.append(self.auxiliary(x1))
        embedding = self.pool(x1)
        if self.training:
            return embedding, self.neck(embedding), *auxiliary
        ranked: Tensor = self.neck.norm(embedding)
        return ranked

    def head(self) -> list[nn.Module]:
        """Return the pooling, the neck, and the auxiliary head if there is one."""
        return [self.pool, self.neck, *([] if self.auxiliary is None else [self.auxiliary])]

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Set the drop-path probability, which grows linearly over the epochs (DARTS)."""
        self.drop_path = self._last_drop_path * epoch / epochs

    def drawing(self, shapes: Mapping[str, str], caption: str, size: str) -> Drawing:
        """Return a drawing of the sequence of cells."""
        return network_drawing(self, shapes, caption, size)


def _check(channels: int, cells_per_stage: Sequence[int], stem: str, parts: int, drop_path: float) -> None:
    """Raise ConfigError for the first option that is out of range; the config does not check a network's options."""
    stages = cells_per_stage if isinstance(cells_per_stage, list | tuple) else ()
    probability = isinstance(drop_path, int | float) and 0 <= drop_path < 1
    checks = (
        ("channels", channels, _is_count(channels), "must be 1 or more"),
        ("cells_per_stage", cells_per_stage, bool(stages) and all(map(_is_count, stages)), _STAGES),
        ("stem", stem, stem in STEMS, f"must be one of {', '.join(STEMS)}"),
        ("parts", parts, _is_count(parts), "must be 1 or more"),
        ("drop_path", drop_path, probability, "must be at least 0 and less than 1"),
    )
    for name, value, valid, requirement in checks:
        if not valid:
            raise ConfigError(f"derived: {name} = {value!r}: {requirement}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1
