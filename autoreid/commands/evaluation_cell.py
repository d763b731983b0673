"""A cell of the table: rank a gallery with the settings of the command line, and draw the hardest queries."""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
from PIL import Image

from autoreid.config import Metric
from autoreid.distributed import World
from autoreid.evaluation.comparison import Comparison
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.multi_query import merge_queries
from autoreid.reporting.evaluation_report import EvaluationReport, TableCell
from autoreid.reporting.ranked_lists import draw_ranked_lists, hardest_queries, rank_lists

#: CMC ranks that are reported.
RANKS = range(1, 21)


class Context(NamedTuple):
    """What all cells of the table share: the command line, the process group, and rank 0's report with --output."""

    options: argparse.Namespace
    world: World
    report: EvaluationReport | None

    def compare(self, query: FeatureSet, gallery: FeatureSet, metric: Metric) -> Comparison:
        """Merge and expand the queries, and combine them with the metric and the protocol, as the command line asks."""
        options, device = self.options, self.world.device
        metric = options.metric or metric
        if options.multi_query is not None:
            query = merge_queries(query, options.multi_query, metric)
        comparison = Comparison(query, gallery, metric, options.rerank, device, options.keep_same_camera)
        if options.query_expansion is None:
            return comparison
        return comparison.expanded(options.query_expansion, options.query_expansion_alpha)


def evaluate_cell(
    context: Context, source: str, target: str, comparison: Comparison, **settings: str
) -> TableCell:
    """Rank the gallery and return the result with its settings; `settings` are added to them."""
    options = context.options
    common = {"metric": comparison.metric, "rerank": comparison.reranked, "flip": options.flip}
    common |= {"keep_same_camera": comparison.keep_same_camera, "multi_query": options.multi_query}
    common["query_expansion"] = None
    if options.query_expansion is not None:
        common["query_expansion"] = {
            "images": options.query_expansion,
            "alpha": options.query_expansion_alpha,
        }
    result, roc = comparison.evaluate(RANKS), comparison.roc() if options.roc else None
    return TableCell(source, target, common | settings, result, roc)


def draw_hardest(context: Context, cell: TableCell, comparison: Comparison) -> Image.Image:
    """Draw the ranked lists of the queries with the lowest average precision."""
    precision = cell.result.average_precision
    hardest = hardest_queries(precision, context.options.rows)
    query = comparison.query.select(hardest)
    distances, keep = comparison.distances(hardest), comparison.keep_same_camera
    lists = rank_lists(distances, query, comparison.gallery, keep_same_camera=keep)
    if comparison.squared:
        lists = [one._replace(distances=np.sqrt(one.distances.clip(0))) for one in lists]
    settings = cell.settings
    added = {"multi_query": "multi-query", "query_expansion": "query expansion", "rerank": "re-ranked"}
    how = ", ".join([comparison.metric, *(words for key, words in added.items() if settings[key])])
    title = f"{cell.source} on {cell.target} ({how}): the {len(hardest)} hardest of {cell.result.valid_queries} queries"
    return draw_ranked_lists(lists, query, comparison.gallery, precision[hardest], title)
