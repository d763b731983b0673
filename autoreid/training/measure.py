"""Measures the retrieval of a network during a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from autoreid import distributed
from autoreid.config import Config
from autoreid.data.loaders import embedding_batches
from autoreid.data.training_data import TrainingData
from autoreid.distributed import World
from autoreid.evaluation import MeanRetrieval, measure_retrieval
from autoreid.training.build import memory_format
from autoreid.training.embedding import EmbeddingPass
from autoreid.training.precision import PassPrecision
from autoreid.training.state import RunState


def measure_network(
    config: Config, network: nn.Module, data: TrainingData, world: World, inputs: Sequence[Any] = ()
) -> MeanRetrieval:
    """Measure the retrieval of a network on each target, in evaluation mode with rank 0's running statistics.

    Embeddings are computed in the precision and memory format of the training, distances in float32. All ranks call it
    together. Afterwards the network is in training mode.

    Args:
        inputs: the network's other inputs besides the images.
    """
    training = config.training
    precision = PassPrecision(training.precision, world.device)
    embed = EmbeddingPass(network, precision, memory_format(training), inputs)
    distributed.broadcast_buffers(network)
    load = partial(
        embedding_batches,
        images=data.images,
        batch_size=config.evaluation.batch_size,
        workers=config.data.workers,
        device=world.device,
    )
    network.eval()
    try:
        # Runs at most once per epoch, which is too rarely to be worth a compilation.
        with torch.compiler.set_stance("force_eager"):
            return MeanRetrieval(
                {
                    target.name: measure_retrieval(
                        embed,
                        target.query,
                        target.gallery,
                        load,
                        world,
                        config.evaluation.metric,
                        config.evaluation.keep_same_camera,
                    )
                    for target in data.targets
                }
            )
    finally:
        network.train()


def is_due(state: RunState, every_epochs: int) -> bool:
    """Return whether retrieval is measured after the epoch that has just ended. It always is after the last one."""
    return state.finished or state.epoch % every_epochs == 0
