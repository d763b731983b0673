"""Measures what the networks of an evaluation cost: parameters, multiply-accumulates, and latency on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autoreid.errors import DataError, RunError
from autoreid.evaluation.latency import measure_latency
from autoreid.models import count_macs, count_parameters
from autoreid.reporting.cost_report import NetworkCost
from autoreid.training.embedding import EmbeddingPass

if TYPE_CHECKING:
    import onnxruntime

#: Numbers of images in a batch: one person at a time, and many.
BATCHES = (1, 32)


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
    """Check that exported networks can be measured; raises what `cost_of_onnx` raises, except for their sizes."""
    for path in paths:
        _size(_open(path), path)


def cost_of_onnx(path: Path, network: NetworkCost, height: int, width: int) -> NetworkCost:
    """Measure an exported network in ONNX Runtime, on the CPU and with as many threads as PyTorch uses.

    Args:
        path: the file that `autoreid.export` has written.
        network: the cost of the network that was exported.
        height, width: size of the images that this network takes.

    Raises:
        DataError: ONNX Runtime cannot read the file, or its input is not that of this network.
        RunError: onnxruntime is not installed.
    """
    session = _open(path)
    found = _size(session, path)
    if found != (height, width):
        raise DataError(
            f"{path}: takes images of {found[0]}x{found[1]} pixels, but {network.source} those of {height}x{width}; "
            f"export this checkpoint again"
        )
    latencies = []
    for batch in BATCHES:
        images = {"images": _images(batch, height, width).numpy()}
        latencies.append(measure_latency(partial(session.run, None, images), batch, torch.device("cpu")))
    where = f"ONNX Runtime, {_cpu()}"
    return NetworkCost(network.source, network.parameters, network.macs, where, latencies, is_onnx=True)


def _open(path: Path) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise RunError("--onnx requires onnxruntime: pip install 'autoreid[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many kinds, without a common base class
        raise DataError(
            f"{path}: ONNX Runtime cannot read the file: {(str(error).splitlines() or [''])[0]}"
        ) from error


def _size(session: onnxruntime.InferenceSession, path: Path) -> tuple[int, int]:
    """Return height and width of the images that an exported network takes."""
    inputs = {given.name: given.shape for given in session.get_inputs()}
    shape = inputs.get("images", [])
    if len(inputs) != 1 or len(shape) != 4 or not all(isinstance(size, int) for size in shape[2:]):
        raise DataError(f"{path}: expected one input `images` (B, 3, H, W), as autoreid.export writes it")
    return shape[2], shape[3]


def _images(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator)


def _cpu() -> str:
    threads = torch.get_num_threads()
    return "CPU, 1 thread" if threads == 1 else f"CPU, {threads} threads"
