"""The settings of each search space: a section of `search` for each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from autoreid.config.section import Count, Section, first_duplicate

#: Operations that a cell of the `reid_cell` space may use, in the order of the alphas' columns.
#: `none` can win an edge during the search, but a genotype never contains it.
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
    "part_conv",
)
#: The default operations of a search.
DEFAULT_CELL_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "part_conv",
)
#: Those that need a row for each body part.
_PART_OPERATIONS = {"part_aware", "part_conv"}


class SpaceSection(Section):
    """The settings of one search space."""

    def check_images(self, height: int, width: int) -> None:
        """Check that images are large enough for the space's supernet; by default any size is.

        Args:
            height: image height in pixels.
            width: image width in pixels.

        Raises:
            ValueError: they are too small; the message begins with the full name of the key to change.
        """


class ReidCell(SpaceSection):
    """DARTS cells with a part-aware operation (Auto-ReID)."""

    operations: tuple[Literal[CELL_OPERATIONS], ...] = DEFAULT_CELL_OPERATIONS  # type: ignore[valid-type]
    """Candidate operations of every edge."""
    stem: Literal["resnet", "darts"] = "resnet"
    """resnet: 7×7 convolution of stride 2 and a pool, to 1/4 resolution; darts: 3×3 convolution of stride 1."""
    channels: Count = 16
    """C of the first cells; each reduction cell doubles it."""
    partial_channels: Count = 1
    """K: an edge's candidates see 1/K of the channels. If K > 1, edges have weights too (PC-DARTS uses 4)."""
    cells_per_stage: tuple[Count, ...] = (2, 2, 2, 2)
    """Number of cells in each stage; every stage but the first begins with a reduction cell."""
    nodes: Annotated[int, Field(ge=2)] = 4
    """Number of nodes in a cell."""
    parts: Count = 4
    """M: number of horizontal body parts in the part-aware operations."""
    stop_at_skips: Count | None = None
    """Stop the search once the normal cell has this many skip_connect edges (DARTS+); null never stops."""

    @model_validator(mode="after")
    def _check(self) -> ReidCell:
        if duplicate := first_duplicate(self.operations):
            raise ValueError(f"operations: duplicate entry {duplicate}")
        if not set(self.operations) - {"none"}:
            raise ValueError("operations: at least one operation other than none is needed")
        if self.channels % self.partial_channels:
            raise ValueError(
                f"partial_channels: {self.partial_channels} does not divide channels ({self.channels})"
            )
        if len(self.cells_per_stage) < 2:
            raise ValueError(
                "cells_per_stage: at least two stages are needed; the second begins with a reduction cell"
            )
        return self

    def check_images(self, height: int, width: int) -> None:  # noqa: ARG002
        """Check that the last cell's feature map has a row for each part of the part-aware operations."""
        halvings = len(self.cells_per_stage) - 1 + (2 if self.stem == "resnet" else 0)
        rows = -(-height // 2**halvings)
        if _PART_OPERATIONS & set(self.operations) and rows < self.parts:
            raise ValueError(
                f"search.reid_cell.parts: {self.parts} parts do not fit into the last cell's {rows} rows; "
                f"use fewer parts, or a data.height above {height}"
            )


class OsnetAin(SpaceSection):
    """Where OSNet's blocks have instance norm (OSNet-AIN)."""

    width: Annotated[float, Field(ge=0.25)] = 1.0
    """Factor of the channels 64, 256, 384 and 512."""
    stem_norm: Literal["instance_norm", "searched"] = "instance_norm"
    """Norm after the first convolution. instance_norm: as published; searched: batch norm or instance norm, which the
    search chooses."""

    def check_images(self, height: int, width: int) -> None:
        """Check that the last blocks see more than one pixel, which their instance norm needs."""
        rows, columns = -(-height // 4) // 4, -(-width // 4) // 4
        if rows * columns < 2:
            raise ValueError(
                f"data.height: images of {height}×{width} leave {rows}×{columns} pixels to the last blocks, "
                f"whose instance norm needs two or more"
            )


class Msinet(SpaceSection):
    """How the two branches of MSINet's cells interact (MSINet)."""

    width: Annotated[float, Field(ge=0.25)] = 1.0
    """Factor of the channels 64, 256, 384 and 512."""

    def check_images(self, height: int, width: int) -> None:
        """Check that a pixel remains after both average pools."""
        for name, pixels in (("height", height), ("width", width)):
            if -(-pixels // 4) < 4:
                raise ValueError(
                    f"data.{name}: images of {height}×{width} leave no pixel to the last cells; "
                    f"use a data.{name} of 13 or more"
                )


class SpaceChoice(Section):
    """The space to search, and the settings of every space under its name."""

    space: Literal["reid_cell", "osnet_ain", "msinet"] = "reid_cell"
    """Search space; the section of the same name holds its settings."""
    reid_cell: ReidCell = ReidCell()
    osnet_ain: OsnetAin = OsnetAin()
    msinet: Msinet = Msinet()

    @property
    def space_section(self) -> SpaceSection:
        """The settings of the space to search."""
        section: SpaceSection = getattr(self, self.space)
        return section

    @model_validator(mode="after")
    def _check_other_spaces(self) -> SpaceChoice:
        for name, section in self:
            if isinstance(section, SpaceSection) and name != self.space:
                for key in section.changed_keys():
                    raise ValueError(f"{name}.{key}: a setting of space {name}, but space is {self.space}")
        return self
