"""The report of an evaluation: table of sources and targets, result.json, pictures and TensorBoard."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from PIL import Image

from autoreid.errors import ConfigError
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.ranking import RetrievalResult
from autoreid.files import make_folder, write_atomically
from autoreid.reporting.board import Board
from autoreid.reporting.cost_report import NetworkCost, cost_figure, cost_json, cost_rows
from autoreid.reporting.curves import cmc_figure, picture_of
from autoreid.reporting.environment import describe_environment
from autoreid.reporting.run_folder import RunFolder
from autoreid.reporting.text_table import as_markdown, as_text

_log = logging.getLogger(__name__)


class TableCell(NamedTuple):
    """A cell of the cross-domain table.

    Attributes:
        source: name of the checkpoint or feature file that the embeddings come from.
        target: name of the data set, or of the file with the gallery's features.
        settings: how the images were embedded and ranked.
    """

    source: str
    target: str
    settings: dict[str, str | bool]
    result: RetrievalResult


def as_json(cells: Sequence[TableCell], costs: Sequence[NetworkCost] = ()) -> dict[str, Any]:
    """Return the content of result.json: the cells under `results`, with all metrics as fractions of 1.

    If the networks were measured, their costs are under `costs`.
    """
    results = []
    for source, target, settings, result in cells:
        figures = {"map": result.map, "cmc": result.cmc, "minp": result.minp}
        counts = {"queries": result.queries, "valid_queries": result.valid_queries}
        results.append({"source": source, "target": target, **settings, **figures, **counts})
    return {"results": results} | ({"costs": cost_json(costs)} if costs else {})


def as_table(cells: Sequence[TableCell], costs: Sequence[NetworkCost] = ()) -> str:
    """Return the table as text: sources as rows, targets as columns, mAP and rank-1 in percent.

    A cell that is missing is shown as failed. The lines below the table give the precision of each source, the number
    of queries without a match, and whether matches by the query's camera count. The table of the costs follows.
    """
    lines = [as_text(_rows(cells))]
    for source, settings in {cell.source: cell.settings for cell in cells}.items():
        if "precision" in settings:
            lines.append(f"{source}: computed in {settings['precision']}")
    for target, result in {cell.target: cell.result for cell in cells}.items():
        if result.valid_queries < result.queries:
            left_out = result.queries - result.valid_queries
            lines.append(
                f"{target}: {left_out} of {result.queries} queries have no match in the gallery and are not counted"
            )
    if any(cell.settings.get("keep_same_camera") for cell in cells):
        lines.append("matches by the query's own camera are counted: not comparable with published results")
    if costs:
        lines += ["", as_text(cost_rows(costs))]
    return "\n".join(lines)


def _rows(cells: Sequence[TableCell]) -> list[list[str]]:
    shown = {
        (cell.source, cell.target): f"{100 * cell.result.map:.1f} / {100 * cell.result.cmc[1]:.1f}"
        for cell in cells
    }
    targets = list(dict.fromkeys(cell.target for cell in cells))
    sources = dict.fromkeys(cell.source for cell in cells)
    rows = [[source, *(shown.get((source, target), "failed") for target in targets)] for source in sources]
    return [["mAP / rank-1 in %", *targets], *rows]


class EvaluationReport:
    """Writes the folder of an evaluation, on rank 0, one cell of the table at a time.

    The folder has result.json, cmc.png and cost.png (with matplotlib), tensorboard/, and for each cell SOURCE/TARGET/
    with its pictures and features.

    Attributes:
        weights: what was loaded from weights of other programs, by the name of the source, for environment.json.
    """

    def __init__(self, folder: Path) -> None:
        """Create the folder.

        Raises:
            ConfigError: the folder cannot be created, or is the folder of a run.
        """
        self.folder = RunFolder(folder)
        if self.folder.config.exists():
            raise ConfigError(f"{folder}: holds a run; set another --output to keep the run's result.json")
        make_folder(folder, "set another --output")
        self.weights: dict[str, Any] = {}
        self.board = Board(self.folder.tensorboard)

    def __enter__(self) -> EvaluationReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.board.close()

    def add(
        self, cell: TableCell, pictures: Mapping[str, Image.Image], features: Mapping[str, FeatureSet]
    ) -> None:
        """Write the metrics, pictures and features of a cell; pictures and features by their file names."""
        folder = self.folder.root / cell.source / cell.target
        make_folder(folder, "set another --output")
        for part, feature_set in features.items():
            feature_set.save(folder / f"{part}.npz")
        name = f"{cell.source}/{cell.target}"
        self.board.scalars({f"map/{name}": cell.result.map, f"minp/{name}": cell.result.minp}, 0)
        for rank, share in cell.result.cmc.items():
            self.board.scalars({f"cmc/{name}": share}, rank)
        for what, picture in pictures.items():
            self._show(f"{what}/{name}", picture, folder / f"{what}.png")

    def finish(self, cells: Sequence[TableCell], costs: Sequence[NetworkCost]) -> None:
        """Write result.json, and add the tables, the CMC curves and the picture of the costs to TensorBoard."""
        self.folder.write_result(as_json(cells, costs))
        self.folder.write_environment(describe_environment() | {"weights": self.weights})
        curves = {}
        for cell in cells:
            label = f"{cell.source} on {cell.target}: mAP {100 * cell.result.map:.1f} %"
            curves[label] = cell.result.cmc
        try:
            self._show("cmc", picture_of(cmc_figure(curves)), self.folder.root / "cmc.png")
            if costs:
                maps = {(cell.source, cell.target): cell.result.map for cell in cells}
                self._show("cost", picture_of(cost_figure(costs, maps)), self.folder.root / "cost.png")
        except ImportError:
            names = "cmc.png and cost.png were" if costs else "cmc.png was"
            _log.warning("%s not drawn, because matplotlib is not installed: pip install matplotlib", names)
        self.board.text("table", as_markdown(_rows(cells)))
        if costs:
            self.board.text("costs", as_markdown(cost_rows(costs)))

    def _show(self, tag: str, picture: Image.Image, path: Path) -> None:
        data = io.BytesIO()
        picture.save(data, "png")
        write_atomically(path, data.getvalue())
        self.board.picture(tag, path, 0)
