"""python -m autoreid.evaluate: mAP and CMC of checkpoints on data sets, or of feature files from any program."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from autoreid import distributed
from autoreid.cli import run_command
from autoreid.config import Config, Precision, expand
from autoreid.data.images import Images
from autoreid.data.loaders import Batch, embedding_batches
from autoreid.data.records import ReidDataset, Split
from autoreid.data.targets import check_target, read_targets
from autoreid.data.training_data import people_seen_in_training
from autoreid.distributed import World, on_main
from autoreid.errors import AutoreidError, ConfigError, DataError, DivergedError
from autoreid.evaluation.comparison import Comparison
from autoreid.evaluation.distances import Metric
from autoreid.evaluation.features import Embed, FeatureSet, extract_features, flip_test
from autoreid.networks import add_architecture_options, architecture_of, load_network
from autoreid.reporting.activation_maps import draw_activation_maps
from autoreid.reporting.evaluation_report import EvaluationReport, TableCell, as_json, as_table
from autoreid.reporting.logs import progress_bar
from autoreid.reporting.ranked_lists import draw_ranked_lists, hardest_queries, rank_lists
from autoreid.training.build import memory_format
from autoreid.training.embedding import EmbeddingPass
from autoreid.training.precision import PassPrecision

# Not __name__, which is __main__ when this module is run as a command.
_log = logging.getLogger("autoreid.evaluate")

#: CMC ranks that are reported.
RANKS = range(1, 21)
#: How long the other ranks wait for rank 0, which ranks the gallery and draws the pictures alone.
TIMEOUT_SECONDS = 4 * 3600.0

_DESCRIPTION = """\
Rank gallery images for each query by Market-1501's protocol and print mAP and rank-1, either of each --checkpoint
on the query and gallery of each --data, or of feature files written by any program.
"""
_EXAMPLES = """\
examples:
  python -m autoreid.evaluate --checkpoint runs/quickstart --data /data/market1501
  python -m autoreid.evaluate --checkpoint ours=runs/retrain --checkpoint runs/resnet50/checkpoints/best.pt \\
      --data market=/data/market1501 --data msmt=/data/msmt17 --flip --output evaluations/cross-domain
  python -m autoreid.evaluate --checkpoint osnet_x1_0_market.pth --model osnet_x1_0 --data /data/market1501
  python -m autoreid.evaluate --query q.npz --gallery g.npz --metric cosine --rerank --json
  torchrun --nproc-per-node 4 -m autoreid.evaluate --checkpoint runs/retrain --data /data/msmt17

A feature file contains the arrays features (images, dimensions), identities and cameras (images,), and optionally
paths (images,) as text, for the pictures of ranked lists.

exit status: 0 done; 1 failed; 2 the command line or a file is wrong
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; raises ConfigError if options contradict each other."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.evaluate",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    for option, what in (
        ("--checkpoint", "run folder or checkpoint of a trained network, or weights of the network --model"),
        ("--data", "folder of a data set"),
    ):
        add(option, action="append", default=[], metavar="[NAME=]PATH", help=f"{what}; may be repeated")
    add("--query", type=Path, metavar="FILE", help="query features (.npz); requires --gallery")
    add("--gallery", type=Path, metavar="FILE", help="gallery features (.npz); requires --query")
    add(
        "--metric",
        choices=get_args(Metric),
        help="default: the checkpoint's metric; euclidean for feature files",
    )
    add(
        "--keep-same-camera",
        action="store_true",
        help="count gallery images of the query's person by the query's camera as matches, for data from a single "
        "camera; results are then not comparable with published ones",
    )
    add("--rerank", action="store_true", help="k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)")
    add("--flip", action="store_true", help="average the features of each image and its mirror image")
    add(
        "--precision",
        choices=get_args(Precision),
        help="number format of the network's computation, which affects the last digits; bfloat16 uses autocast, tf32 "
        "is float32 on CPUs (default: the checkpoint's training.precision)",
    )
    add(
        "--batch-size",
        type=int,
        default=128,
        metavar="N",
        help="images per batch on each rank (default: 128)",
    )
    add("--workers", type=int, metavar="N", help="loader processes per rank (default: the checkpoint's)")
    add(
        "--on-broken-image",
        choices=("error", "skip"),
        default="error",
        help="skip: decode all images first, and leave out those that cannot be read (default: error)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write result.json, features, pictures and TensorBoard logs here",
    )
    add(
        "--rows",
        type=int,
        default=10,
        metavar="N",
        help="number of queries in the pictures, hardest first (default: 10)",
    )
    add("--json", action="store_true", help="print a JSON object instead of the table")
    add_architecture_options(parser)
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    files, networks = (options.query, options.gallery), (options.checkpoint, options.data)
    if any(files) == any(networks) or not (all(files) or all(networks)):
        raise ConfigError("give either --checkpoint with --data, or --query with --gallery")
    for option in ("--flip", "--precision"):
        if getattr(options, option[2:]) and all(files):
            raise ConfigError(f"{option}: requires --checkpoint; features in files cannot be changed")
    if architecture_of(options) is not None and all(files):
        raise ConfigError("--model: requires --checkpoint")
    workers = options.workers or 0
    for option, value, least in (
        ("--batch-size", options.batch_size, 1),
        ("--rows", options.rows, 1),
        ("--workers", workers, 0),
    ):
        if value < least:
            raise ConfigError(f"{option} {value}: must be at least {least}")


def named_paths(option: str, values: Sequence[str]) -> dict[str, Path]:
    """Return the paths of a repeated option by name; the name is given as NAME=PATH or taken from the path.

    Raises:
        ConfigError: a path does not exist, or two have the same name.
    """
    paths: dict[str, Path] = {}
    for value in values:
        given = re.fullmatch(r"([A-Za-z0-9][\w.-]*)=(.+)", value)
        path = expand(Path(given[2] if given else value))  # a shell does not expand NAME=~
        if not path.exists():
            raise ConfigError(f"{option} {value}: no such file or folder: {path}")
        of_run = path.parent.name == "checkpoints"
        name = given[1] if given else (path.absolute().parents[1] if of_run else path.resolve()).name
        if name in paths:
            raise ConfigError(f"{option} {value}: the name {name} is already used; give a unique NAME=PATH")
        paths[name] = path
    return paths


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
        world, layout = self.context.world, memory_format(self.config.training)
        embed: Embed = EmbeddingPass(self.network, PassPrecision(self.precision, world.device), layout)
        embed = flip_test(embed) if self.context.options.flip else embed
        try:
            return FeatureSet.of(split, extract_features(embed, split, self.batches, world))
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


def evaluate(options: argparse.Namespace, world: World) -> list[TableCell]:
    """Print and return all cells of the table, row by row; they are the same on every rank.

    Raises:
        DataError, DivergedError: a cell could not be computed; all others are printed and saved first.
    """
    reports: list[EvaluationReport] = []
    if options.output is not None:
        on_main(lambda: reports.append(EvaluationReport(options.output)))
    cells: list[TableCell] = []
    with reports[0] if reports else nullcontext() as report:
        context = Context(options, world, report)
        try:
            if options.query is not None:
                cells.append(on_main(lambda: evaluate_files(context)))
            else:
                evaluate_networks(context, cells)
        finally:
            # Without waiting for the other ranks, because one of them may have failed.
            if world.is_main and cells:
                finish(context, cells)
    return cells


def evaluate_networks(context: Context, cells: list[TableCell]) -> None:
    """Add the cells of all checkpoints and data sets; a cell that fails does not stop the others.

    Raises:
        DataError, DivergedError: the first failure, when all other cells are there.
    """
    options, world = context.options, context.world
    checkpoints = named_paths("--checkpoint", options.checkpoint)
    folders = named_paths("--data", options.data)
    targets, notes = read_targets(folders, options.keep_same_camera, options.on_broken_image, world)
    for note in notes if world.is_main else ():
        _log.warning("%s", note)
    failures: list[AutoreidError] = []
    for name, path in checkpoints.items():
        network = TrainedNetwork.load(context, name, path)
        network.warn_of_seen_people(list(targets.values()))
        for target, data in targets.items():
            try:
                cells.append(network.evaluate(target, data))
            except (DataError, DivergedError) as error:  # raised on every rank
                failures.append(error)
    for failure in failures[1:] if world.is_main else ():
        _log.error("%s", failure)
    if failures:
        raise failures[0]


def finish(context: Context, cells: list[TableCell]) -> None:
    """Print the table, or JSON, and write the report."""
    print(json.dumps(as_json(cells)) if context.options.json else as_table(cells))
    if context.report is not None:
        context.report.finish(cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        with distributed.setup(options.device, TIMEOUT_SECONDS) as world:
            evaluate(options, world)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
