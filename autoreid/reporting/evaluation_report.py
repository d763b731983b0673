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
from autoreid.evaluation.roc import Roc
from autoreid.files import make_folder, write_atomically
from autoreid.reporting.board import Board
from autoreid.reporting.cost_report import NetworkCost, cost_figure, cost_json, cost_rows
from autoreid.reporting.curves import cmc_figure, picture_of
from autoreid.reporting.environment import describe_environment
from autoreid.reporting.projector import remove_config, write_config, write_embedding
from autoreid.reporting.roc_report import roc_figure, roc_json, roc_rows
from autoreid.reporting.run_folder import RunFolder
from autoreid.reporting.text_table import as_markdown, as_text

_log = logging.getLogger(__name__)


class TableCell(NamedTuple):
    """A cell of the cross-domain table.

    Attributes:
        source: name of the checkpoint or feature file that the embeddings come from.
        target: name of the data set, or of the file with the gallery's features.
        settings: how the images were embedded and ranked.
        roc: the verification measures, if asked for.
    """

    source: str
    target: str
    settings: dict[str, Any]
    result: RetrievalResult
    roc: Roc | None = None


def as_json(cells: Sequence[TableCell], costs: Sequence[NetworkCost] = ()) -> dict[str, Any]:
    """Return the content of result.json: the cells under `results`, with all metrics as fractions of 1.

    If the networks were measured, their costs are under `costs`.
    """
    results = []
    for source, target, settings, result, roc in cells:
        figures = {"map": result.map, "cmc": result.cmc, "minp": result.minp}
        counts = {"queries": result.queries, "valid_queries": result.valid_queries}
        results.append({"source": source, "target": target, **settings, **figures, **counts})
        if roc is not None:
            results[-1]["roc"] = roc_json(roc)
    return {"results": results} | ({"costs": cost_json(costs)} if costs else {})


def as_table(cells: Sequence[TableCell], costs: Sequence[NetworkCost] = ()) -> str:
    """Return the table as text: sources as rows, targets as columns, mAP and rank-1 in percent.

    A cell that is missing is shown as failed. The lines below the table give the precision of each source, the number
    of queries without a match, and settings that differ from single queries ranked by their distances. The tables of
    the verification measures and of the costs follow.
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
    if cells and (used := _used(cells[0].settings)):
        lines.append(f"with {', '.join(used)}")
    if measured := _measured(cells):
        lines += ["", as_text(roc_rows(measured))]
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


def _used(settings: Mapping[str, Any]) -> list[str]:
    """Return what the command line added to the ranking of single queries, in the order in which it is applied."""
    used = [] if not settings.get("flip") else ["features of mirror images"]
    if how := settings.get("multi_query"):
        used.append(f"multi-query ({how})")
    if how := settings.get("query_expansion"):
        used.append(f"query expansion by {how['images']} gallery images (alpha {how['alpha']:g})")
    return used + (["re-ranking"] if settings.get("rerank") else [])


def _measured(cells: Sequence[TableCell]) -> dict[str, Roc]:
    """Return the verification measures by the label of their cell."""
    return {f"{cell.source} on {cell.target}": cell.roc for cell in cells if cell.roc is not None}


class EvaluationReport:
    """Writes the folder of an evaluation, on rank 0, one cell of the table at a time.

    The folder has result.json, cmc.png, roc.png and cost.png (with matplotlib), tensorboard/, and for each cell
    SOURCE/TARGET/ with its pictures and features.

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
        remove_config(self.folder.tensorboard)
        self._embeddings: list[str] = []

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
        if cell.roc is not None:
            values = {"eer": cell.roc.eer, "auc": cell.roc.auc}
            values |= {f"tpr_at_fpr_{rate:g}": share for rate, share in cell.roc.tpr.items()}
            self.board.scalars({f"roc/{what}/{name}": value for what, value in values.items()}, 0)
        for what, picture in pictures.items():
            self._show(f"{what}/{name}", picture, folder / f"{what}.png")

    def project(self, cell: TableCell, query: FeatureSet, gallery: FeatureSet, limit: int) -> None:
        """Write the features of up to `limit` images for TensorBoard's projector, see `write_embedding`."""
        name = f"{cell.source}/{cell.target}"
        self._embeddings.append(write_embedding(self.folder.tensorboard, name, query, gallery, limit))
        write_config(self.folder.tensorboard, self._embeddings)

    def finish(self, cells: Sequence[TableCell], costs: Sequence[NetworkCost]) -> None:
        """Write result.json, and add the tables, the CMC and ROC curves and the picture of the costs to TensorBoard."""
        self.folder.write_result(as_json(cells, costs))
        self.folder.write_environment(describe_environment() | {"weights": self.weights})
        measured = _measured(cells)
        try:
            self._draw(cells, costs)
        except ImportError:
            names = " and ".join(["cmc.png", *["roc.png"] * bool(measured), *["cost.png"] * bool(costs)])
            _log.warning("not drawn, because matplotlib is not installed: %s; pip install matplotlib", names)
        self.board.text("table", as_markdown(_rows(cells)))
        if measured:
            self.board.text("roc", as_markdown(roc_rows(measured)))
        if costs:
            self.board.text("costs", as_markdown(cost_rows(costs)))

    def _draw(self, cells: Sequence[TableCell], costs: Sequence[NetworkCost]) -> None:
        """Draw the pictures of all cells, and remove those of an earlier evaluation."""
        for name in ("cmc", "roc", "cost"):
            (self.folder.root / f"{name}.png").unlink(missing_ok=True)
        curves = {}
        for cell in cells:
            label = f"{cell.source} on {cell.target}: mAP {100 * cell.result.map:.1f} %"
            curves[label] = cell.result.cmc
        figures = {"cmc": cmc_figure(curves)}
        if measured := _measured(cells):
            figures["roc"] = roc_figure(measured)
        if costs:
            maps = {(cell.source, cell.target): cell.result.map for cell in cells}
            figures["cost"] = cost_figure(costs, maps)
        for name, figure in figures.items():
            self._show(name, picture_of(figure), self.folder.root / f"{name}.png")

    def _show(self, tag: str, picture: Image.Image, path: Path) -> None:
        data = io.BytesIO()
        picture.save(data, "png")
        write_atomically(path, data.getvalue())
        self.board.picture(tag, path, 0)
