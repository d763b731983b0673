"""Measures what the networks of an evaluation cost: parameters, multiply-accumulates, and latency on this machine."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from autoreid.config import Config
from autoreid.data.decoding import decode
from autoreid.data.records import Split
from autoreid.deployment.metadata import Metadata
from autoreid.deployment.onnx_file import OnnxFile, Pictures
from autoreid.embedder import Embedder
from autoreid.errors import DataError
from autoreid.evaluation.latency import measure_latency
from autoreid.models import count_macs, count_parameters
from autoreid.reporting.cost_report import NetworkCost
from autoreid.training.embedding import EmbeddingPass

_log = logging.getLogger(__name__)

#: Numbers of images in a batch: one person at a time, and many.
BATCHES = (1, 32)
#: Smallest cosine of the embeddings of an exported network and of its network that is not reported. Half precision
#: keeps it above, unless the network's activations leave its range.
LEAST_COSINE = 0.999


def cost_of(name: str, embed: EmbeddingPass, height: int, width: int) -> NetworkCost:
    """Measure a network on the device of its weights, in the precision and memory format of the evaluation.

    The images are noise that is already on the device: decoding and copying are not timed.
    """
    device = embed.precision.device
    with torch.no_grad():
        latencies = [
            measure_latency(partial(embed, _images(batch, height, width).to(device)), batch, device)
            for batch in BATCHES
        ]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    macs = count_macs(embed.network, height, width)
    return NetworkCost(name, count_parameters(embed.network), macs, where, latencies)


def check_exported(paths: Iterable[Path]) -> None:
    """Check that exported networks can be measured; raises what `cost_of_onnx` raises, except for their networks."""
    for path in paths:
        OnnxFile(path, str(path))


def cost_of_onnx(
    path: Path, network: NetworkCost, config: Config, embedder: Embedder, images: Split
) -> NetworkCost:
    """Measure an exported network in ONNX Runtime, and compare its embeddings with those of its network.

    A warning says if they differ. The measured passes begin with the input of the file, so they include the steps of
    pre-processing that the file does itself.

    Args:
        path: the file that `autoreid.export` has written.
        network: the cost of the network that was exported.
        config: the config of its training.
        embedder: the network, in float32.
        images: a few images to compare the embeddings of.

    Raises:
        DataError: ONNX Runtime cannot read the file, it is not of this network, its embeddings are not finite, or an
            image cannot be read.
        RunError: onnxruntime is not installed.
    """
    exported = OnnxFile(path, str(path))
    _check_network(exported.metadata, Metadata.of(config), path, network.source)
    batches = [np.asarray(decode(image))[None] for image in images.paths]
    agreement = exported.compare(embedder, batches)
    if math.isnan(agreement.cosine):
        raise DataError(f"{path}: its embeddings or those of {network.source} are not finite")
    if agreement.cosine < LEAST_COSINE:
        _log.warning(
            "%s: its embeddings differ from those of %s: smallest cosine %.4f for %d images, expected at least %g",
            *(path, network.source, agreement.cosine, len(batches), LEAST_COSINE),
        )
    latencies = []
    for batch in BATCHES:
        given = exported.prepare(_pictures(batch, embedder.height, embedder.width))
        latencies.append(measure_latency(partial(exported.run, given), batch, torch.device("cpu")))
    where = f"ONNX Runtime, {_cpu()}"
    return NetworkCost(
        network.source, network.parameters, network.macs, where, latencies, True, agreement.cosine
    )


def _check_network(exported: Metadata, network: Metadata, path: Path, source: str) -> None:
    """Raise DataError if a file was exported from another network than the checkpoint's."""
    if exported.network != network.network:
        differs = f"contains the network {exported.network}, but {source} is {network.network}"
    elif exported.network_options != network.network_options:
        differs = f"its network {exported.network} has other options or another genotype than {source}"
    elif exported.size != network.size:
        differs = f"takes images of {exported.size} pixels, but {source} those of {network.size}"
    else:
        return
    raise DataError(f"{path}: {differs}; export this checkpoint again")


def _images(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator)


def _pictures(batch: int, height: int, width: int) -> Pictures:
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def _cpu() -> str:
    threads = torch.get_num_threads()
    return "CPU, 1 thread" if threads == 1 else f"CPU, {threads} threads"
