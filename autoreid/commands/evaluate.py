"""Evaluate checkpoints on data sets, or feature files from any program."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from autoreid import distributed
from autoreid.architecture import architecture_of
from autoreid.commands.cost import check_exported
from autoreid.commands.evaluation_cell import Context, draw_hardest, evaluate_cell
from autoreid.commands.trained_network import TrainedNetwork
from autoreid.data.records import ReidDataset
from autoreid.data.targets import check_target, check_target_folder, read_targets
from autoreid.distributed import World, on_main
from autoreid.errors import AutoreidError, DataError, DivergedError, named
from autoreid.evaluation.features import FeatureSet
from autoreid.networks import load_network
from autoreid.reporting.cost_report import NetworkCost
from autoreid.reporting.evaluation_report import EvaluationReport, TableCell, as_json, as_table

_log = logging.getLogger(__name__)

#: Number of queries for which the embeddings of exported files are compared.
COMPARED = 8
#: How long the other ranks wait for rank 0, which ranks the gallery and draws the pictures alone.
TIMEOUT_SECONDS = 4 * 3600.0


def evaluate_files(context: Context) -> TableCell:
    """Evaluate the two feature files."""
    paths = (context.options.query, context.options.gallery)
    query, gallery = (FeatureSet.load(path) for path in paths)
    for path, features in zip(paths, (query, gallery), strict=True):
        if not len(features.identities):
            raise DataError(f"{path}: contains the features of no image")
    if query.features.shape[1] != gallery.features.shape[1]:
        dimensions = [features.features.shape[1] for features in (query, gallery)]
        raise DataError(
            f"{paths[1]}: features have {dimensions[1]} dimensions, but those in {paths[0]} have {dimensions[0]}"
        )
    nothing = query.split("train").select(np.arange(0))
    target = ReidDataset(paths[0].name, nothing, query.split("query"), gallery.split("gallery"))
    options = context.options
    for note in check_target(target, options.keep_same_camera, options.multi_query is not None):
        _log.warning("%s", note)
    check_expansion(options, paths[1].name, len(gallery))
    comparison = context.compare(query, gallery, "euclidean")
    cell = evaluate_cell(context, paths[0].stem, paths[1].stem, comparison)
    if context.report is not None:
        pictures = {}
        try:
            pictures["ranked_lists"] = draw_hardest(context, cell, comparison)
        except DataError as error:  # paths from another machine
            _log.warning("cannot draw ranked lists: %s", error)
        context.report.add(cell, pictures, {})
        if options.projector is not None:
            context.report.project(cell, query, gallery, options.projector)
    return cell


def execute(options: argparse.Namespace) -> None:
    """Evaluate what the command line names, as the rank that the environment names."""
    with distributed.setup(options.device, TIMEOUT_SECONDS) as world:
        evaluate(options, world)


def check(options: argparse.Namespace) -> None:
    """Raise the errors of an evaluation's start: of a checkpoint, a data set or an exported file."""
    check_exported(options.onnx.values())
    check_checkpoints(options, list(options.checkpoint.values()))
    for name, path in options.data.items():
        multi_query = options.multi_query is not None
        target = check_target_folder(path, name, options.keep_same_camera, multi_query)
        check_expansion(options, name, len(target.gallery))


def check_expansion(options: argparse.Namespace, name: str, found: int) -> None:
    """Raise a DataError if a gallery has too few images for --query-expansion."""
    images = options.query_expansion
    if images is not None and images >= found:
        raise DataError(
            f"{name}: has {found} gallery images; --query-expansion {images} needs more than {images}"
        )


def check_checkpoints(options: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Raise the error of the first checkpoint that cannot be loaded; one at a time is in memory."""
    for path in paths:
        load_network(path, architecture_of(options), may_be_trained=True)


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
    later = list(options.checkpoint.values())[1:]  # the first is loaded before anything is computed
    on_main(lambda: check_checkpoints(options, later))
    multi_query = options.multi_query is not None
    targets, notes = read_targets(
        options.data, options.keep_same_camera, multi_query, options.on_broken_image, world
    )
    for note in notes if world.is_main else ():
        _log.warning("%s", note)
    for target, data in targets.items():
        on_main(partial(check_expansion, options, target, len(data.gallery)))
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
                with named(f"{name} on {target}"):
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
