"""A checkpoint's network: embed the images of data sets, evaluate them and measure the network's cost."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from autoreid.architecture import architecture_of
from autoreid.commands.cost import cost_of, cost_of_onnx
from autoreid.commands.evaluation_cell import Context, draw_hardest, evaluate_cell
from autoreid.config import Config, Precision
from autoreid.data.images import Images
from autoreid.data.loaders import Batch, embedding_batches
from autoreid.data.records import ReidDataset, Split
from autoreid.data.training_data import people_seen_in_training
from autoreid.distributed import on_main
from autoreid.embedder import Embedder
from autoreid.errors import DataError
from autoreid.evaluation.features import Embed, FeatureSet, extract_features, flip_test
from autoreid.networks import load_network
from autoreid.reporting.activation_maps import draw_activation_maps
from autoreid.reporting.cost_report import NetworkCost
from autoreid.reporting.evaluation_report import TableCell
from autoreid.reporting.logs import progress_bar
from autoreid.reporting.ranked_lists import hardest_queries
from autoreid.training.build import memory_format
from autoreid.training.embedding import EmbeddingPass
from autoreid.training.precision import PassPrecision

_log = logging.getLogger(__name__)


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
        return on_main(lambda: self._finish(target, query, gallery))

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

    def _finish(self, target: str, query: FeatureSet, gallery: FeatureSet) -> TableCell:
        context = self.context
        comparison = context.compare(query, gallery, self.config.evaluation.metric)
        cell = evaluate_cell(context, self.name, target, comparison, precision=self.precision)
        if context.report is not None:
            hardest = hardest_queries(cell.result.average_precision, context.options.rows)
            queries = comparison.query.split("query")
            images = torch.cat([batch.images for batch in self.batches(queries, hardest)])
            pictures = {
                "ranked_lists": draw_hardest(context, cell, comparison),
                "activation_maps": draw_activation_maps(self.network, images.to(context.world.device)),
            }
            context.report.add(cell, pictures, {"query": query, "gallery": gallery})
            if context.options.projector is not None:
                context.report.project(cell, query, gallery, context.options.projector)
        return cell
