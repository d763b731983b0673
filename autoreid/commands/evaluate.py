"""Evaluate checkpoints on data sets, or feature files from any program."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from autoreid import distributed
from autoreid.architecture import architecture_of
from autoreid.commands.cost import check_exported, cost_of, cost_of_onnx
from autoreid.config import Config, Metric, Precision
from autoreid.data.images import Images
from autoreid.data.loaders import Batch, embedding_batches
from autoreid.data.records import ReidDataset, Split
from autoreid.data.targets import check_target, check_target_folder, read_targets
from autoreid.data.training_data import people_seen_in_training
from autoreid.distributed import World, on_main
from autoreid.embedder import Embedder
from autoreid.errors import AutoreidError, DataError, DivergedError
from autoreid.evaluation.comparison import Comparison
from autoreid.evaluation.features import Embed, FeatureSet, extract_features, flip_test
from autoreid.networks import load_network
from autoreid.reporting.activation_maps import draw_activation_maps
from autoreid.reporting.cost_report import NetworkCost
from autoreid.reporting.evaluation_report import EvaluationReport, TableCell, as_json, as_table
from autoreid.reporting.logs import progress_bar
from autoreid.reporting.ranked_lists import draw_ranked_lists, hardest_queries, rank_lists
from autoreid.training.build import memory_format
from autoreid.training.embedding import EmbeddingPass
from autoreid.training.precision import PassPrecision

_log = logging.getLogger(__name__)

#: CMC ranks that are reported.
RANKS = range(1, 21)
#: Number of queries for which the embeddings of exported files are compared.
COMPARED = 8
#: How long the other ranks wait for rank 0, which ranks the gallery and draws the pictures alone.
TIMEOUT_SECONDS = 4 * 3600.0


class Context(NamedTuple):
    """What all cells of the table share: the command line, the process group, and rank 0's report with --output."""

    options: argparse.Namespace
    world: World
    report: EvaluationReport | None

    def compare(self, query: FeatureSet, gallery: FeatureSet, metric: Metric) -> Comparison:
        """Combine features with the metric, the re-ranking and the protocol that the command line asks for."""
        options, device = self.options, self.world.device
        return Comparison(
            query, gallery, options.metric or metric, options.rerank, device, options.keep_same_camera
        )


def evaluate_files(context: Context) -> TableCell:
    """Evaluate the two feature files."""
    paths = (context.options.query, context.options.gallery)
    query, gallery = (FeatureSet.load(path) for path in paths)
    if query.features.shape[1] != gallery.features.shape[1]:
        dimensions = [features.features.shape[1] for features in (query, gallery)]
        raise DataError(
            f"{paths[1]}: features have {dimensions[1]} dimensions, but those in {paths[0]} have {dimensions[0]}"
        )
    nothing = query.split("train").select(np.arange(0))
    target = ReidDataset(paths[0].name, nothing, query.split("query"), gallery.split("gallery"))
    for note in check_target(target, context.options.keep_same_camera):
        _log.warning("%s", note)
    comparison = context.compare(query, gallery, "euclidean")
    cell = evaluate_cell(context, paths[0].stem, paths[1].stem, comparison)
    if context.report is not None:
        pictures = {}
        try:
            pictures["ranked_lists"] = draw_hardest(context, cell, comparison)
        except DataError as error:  # paths from another machine
            _log.warning("cannot draw ranked lists: %s", error)
        context.report.add(cell, pictures, {})
    return cell


@dataclass(frozen=True)
class TrainedNetwork:
    """A checkpoint's network, which is evaluated in one row of the table.

    Attributes:
        precision: the number format of its computation.
        foreign: whether the weights are those of another program, so that the config names no training images.
    """

    context: Context
    name: str
    network: nn.Module
    config: Config
    precision: Precision
    foreign: bool

    @classmethod
    def load(cls, context: Context, name: str, path: Path) -> TrainedNetwork:
        """Load a network onto this rank's device; precision and layout are by default those of its training.

        The weights of another program are those of `--model`; a line says which entries were loaded.
        """
        network, config, report = load_network(path, architecture_of(context.options), may_be_trained=True)
        if report is not None and context.world.is_main:
            _log.warning("%s", report)
        if report is None and context.options.model is not None and context.world.is_main:
            _log.warning("%s: --model is ignored: the checkpoint of a training names its own network", name)
        if report is not None and context.report is not None:
            context.report.weights[name] = report.as_plain()
        training = config.training
        network.to(device=context.world.device, memory_format=memory_format(training))  # type: ignore[call-overload]
        precision = context.options.precision or training.precision
        return cls(context, name, network, config, precision, report is not None)

    @property
    def forward(self) -> EmbeddingPass:
        """The pass that embeds images, in the network's precision and memory format."""
        precision = PassPrecision(self.precision, self.context.world.device)
        return EmbeddingPass(self.network, precision, memory_format(self.config.training))

    def costs(self, images: Split) -> list[NetworkCost]:
        """Measure the network on rank 0, and its exported file if the command line names one.

        The embeddings of the images by the exported file are compared with those by the network.
        """
        data, onnx = self.config.data, self.context.options.onnx.get(self.name)

        def measure() -> list[NetworkCost]:
            cost = cost_of(self.name, self.forward, data.height, data.width)
            if onnx is None:
                return [cost]
            device, layout = self.context.world.device, memory_format(self.config.training)
            embedder = Embedder(self.network, data.height, data.width, device, "float32", layout)
            return [cost, cost_of_onnx(onnx, cost, self.config, embedder, images)]

        return on_main(measure)

    def warn_of_seen_people(self, targets: Sequence[ReidDataset]) -> None:
        """Warn if the network was trained on people of a data set, as far as its training images are still there."""
        if self.foreign:
            return
        for note in on_main(lambda: people_seen_in_training(self.config.data, targets)):
            if self.context.world.is_main:
                _log.warning("%s: %s", self.name, note)

    def evaluate(self, target: str, data: ReidDataset) -> TableCell:
        """Evaluate the network on a data set; the result is the same on every rank."""
        query, gallery = self.embed(data.query), self.embed(data.gallery)
        comparison = self.context.compare(query, gallery, self.config.evaluation.metric)
        return on_main(lambda: self._finish(target, data.query, comparison))

    def embed(self, split: Split) -> FeatureSet:
        """Return the features of a split's images; each rank computes its share."""
        embed: Embed = flip_test(self.forward) if self.context.options.flip else self.forward
        try:
            return FeatureSet.of(split, extract_features(embed, split, self.batches, self.context.world))
        except DataError as error:
            raise DataError(f"{error}; --on-broken-image skip leaves broken images out") from error

    def batches(self, split: Split, indices: npt.NDArray[np.int64]) -> Iterator[Batch]:
        """Yield batches of the chosen images in order, with a progress bar."""
        images = Images(self.config.data.height, self.config.data.width)
        size, workers = self.context.options.batch_size, self.context.options.workers
        workers = self.config.data.workers if workers is None else workers
        with progress_bar(len(indices), 0, f"{self.name}: {split.name}", self.context.world.is_main) as bar:
            for batch in embedding_batches(split, indices, images, size, workers, self.context.world.device):
                yield batch
                bar.update(len(batch.labels))

    def _finish(self, target: str, query: Split, comparison: Comparison) -> TableCell:
        context = self.context
        cell = evaluate_cell(context, self.name, target, comparison, precision=self.precision)
        if context.report is not None:
            hardest = hardest_queries(cell.result.average_precision, context.options.rows)
            images = torch.cat([batch.images for batch in self.batches(query, hardest)])
            pictures = {
                "ranked_lists": draw_hardest(context, cell, comparison),
                "activation_maps": draw_activation_maps(self.network, images.to(context.world.device)),
            }
            features = {"query": comparison.query, "gallery": comparison.gallery}
            context.report.add(cell, pictures, features)
        return cell


def evaluate_cell(
    context: Context, source: str, target: str, comparison: Comparison, **settings: str
) -> TableCell:
    """Rank the gallery and return the result with its settings; `settings` are added to them."""
    common = {"metric": comparison.metric, "rerank": comparison.reranked, "flip": context.options.flip}
    common["keep_same_camera"] = comparison.keep_same_camera
    return TableCell(source, target, common | settings, comparison.evaluate(RANKS))


def draw_hardest(context: Context, cell: TableCell, comparison: Comparison) -> Image.Image:
    """Draw the ranked lists of the queries with the lowest average precision."""
    precision = cell.result.average_precision
    hardest = hardest_queries(precision, context.options.rows)
    query = comparison.query.select(hardest)
    distances, keep = comparison.distances(hardest), comparison.keep_same_camera
    lists = rank_lists(distances, query, comparison.gallery, keep_same_camera=keep)
    if comparison.squared:
        lists = [one._replace(distances=np.sqrt(one.distances.clip(0))) for one in lists]
    how = f"{comparison.metric}{', re-ranked' if comparison.reranked else ''}"
    title = f"{cell.source} on {cell.target} ({how}): the {len(hardest)} hardest of {cell.result.valid_queries} queries"
    return draw_ranked_lists(lists, query, comparison.gallery, precision[hardest], title)


def execute(options: argparse.Namespace) -> None:
    """Evaluate what the command line names, as the rank that the environment names."""
    with distributed.setup(options.device, TIMEOUT_SECONDS) as world:
        evaluate(options, world)


def check(options: argparse.Namespace) -> None:
    """Raise the errors of an evaluation's start: of a checkpoint, a data set or an exported file."""
    check_exported(options.onnx.values())
    for path in options.checkpoint.values():
        load_network(path, architecture_of(options), may_be_trained=True)
    for name, path in options.data.items():
        check_target_folder(path, name, options.keep_same_camera)


def evaluate(options: argparse.Namespace, world: World) -> list[TableCell]:
    """Print and return all cells of the table, row by row; they are the same on every rank.

    Raises:
        DataError, DivergedError: a cell could not be computed; all others are printed and saved first.
    """
    reports: list[EvaluationReport] = []
    if options.output is not None:
        on_main(lambda: reports.append(EvaluationReport(options.output)))
    cells: list[TableCell] = []
    costs: list[NetworkCost] = []
    with reports[0] if reports else nullcontext() as report:
        context = Context(options, world, report)
        try:
            if options.query is not None:
                cells.append(on_main(lambda: evaluate_files(context)))
            else:
                evaluate_networks(context, cells, costs)
        finally:
            # Without waiting for the other ranks, because one of them may have failed.
            if world.is_main and cells:
                finish(context, cells, costs)
    return cells


def evaluate_networks(context: Context, cells: list[TableCell], costs: list[NetworkCost]) -> None:
    """Add the cells of all checkpoints and data sets, and with --latency the costs of all checkpoints.

    A cell that fails does not stop the others, and neither does a cost.

    Raises:
        DataError, DivergedError: the first failure, when all other cells are there.
    """
    options, world = context.options, context.world
    on_main(lambda: check_exported(options.onnx.values()))
    targets, notes = read_targets(options.data, options.keep_same_camera, options.on_broken_image, world)
    for note in notes if world.is_main else ():
        _log.warning("%s", note)
    queries = next(iter(targets.values())).query
    compared = queries.select(np.arange(min(len(queries), COMPARED)))
    failures: list[AutoreidError] = []
    for name, path in options.checkpoint.items():
        network = TrainedNetwork.load(context, name, path)
        network.warn_of_seen_people(list(targets.values()))
        if options.latency:
            try:
                costs += network.costs(compared)
            except DataError as error:
                failures.append(error)
        for target, data in targets.items():
            try:
                cells.append(network.evaluate(target, data))
            except (DataError, DivergedError) as error:  # raised on every rank
                failures.append(error)
    for failure in failures[1:] if world.is_main else ():
        _log.error("%s", failure)
    if failures:
        raise failures[0]


def finish(context: Context, cells: Sequence[TableCell], costs: Sequence[NetworkCost]) -> None:
    """Print the table, or JSON, and write the report."""
    print(json.dumps(as_json(cells, costs)) if context.options.json else as_table(cells, costs))
    if context.report is not None:
        context.report.finish(cells, costs)
