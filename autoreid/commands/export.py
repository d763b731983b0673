"""Export a trained network to ONNX."""

from __future__ import annotations

import argparse
import importlib.util

import torch
from torch import Tensor, nn

from autoreid.architecture import architecture_of
from autoreid.errors import RunError
from autoreid.files import make_folder, write_atomically
from autoreid.networks import load_network

#: Maximum difference between onnxruntime's embedding and the network's, relative to the largest feature.
TOLERANCE = 1e-4


def execute(options: argparse.Namespace) -> None:
    """Export the checkpoint that the command line names."""
    checkpoint, output, check = options.checkpoint, options.output, options.check
    _require("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    network, config, report = load_network(checkpoint, architecture_of(options))
    if report is not None:
        print(report)
    height, width = config.data.height, config.data.width
    make_folder(output.parent, "choose another --output")
    model = export_onnx(network, height, width)
    if check:
        difference = check_onnx(model, network, height, width)
        print(f"largest difference from onnxruntime: {difference:.2g}")
    write_atomically(output, model)
    print(f"{output}: images (B, 3, {height}, {width}) -> embedding, {len(model) / 1e6:.1f} MB")


def export_onnx(network: nn.Module, height: int, width: int) -> bytes:
    """Return the ONNX model of a network in evaluation mode, for any number of images of one size."""
    # A batch of 2, because torch treats a dimension of size 1 as constant.
    example = torch.zeros(2, 3, height, width)
    with torch.no_grad():  # some layers take another path when gradients are enabled
        program = torch.onnx.export(
            network.eval(),
            (example,),
            input_names=["images"],
            output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    model: bytes = program.model_proto.SerializeToString()  # type: ignore[union-attr]
    return model


def check_onnx(model: bytes, network: nn.Module, height: int, width: int) -> float:
    """Compare an ONNX model, run in onnxruntime, with its network, on batches of one and three random images.

    Returns:
        The largest absolute difference between two features.

    Raises:
        RunError: onnxruntime returns another shape, or the difference exceeds TOLERANCE times the largest feature.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in (1, 3):
        images = torch.randn(batch, 3, height, width, generator=generator)
        with torch.no_grad():
            expected: Tensor = network.eval()(images)
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        if found.shape != expected.shape:
            raise RunError(
                f"onnxruntime returns shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
            )
        difference = (found - expected).abs().max().item()
        largest = expected.abs().max().item()
        # Negated, so that a difference of NaN fails too.
        if not difference <= TOLERANCE * largest:
            raise RunError(
                f"onnxruntime's embedding differs from the network's by {difference:.2g}, with features up to "
                f"{largest:.2g}; nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise RunError(f"export requires {' and '.join(missing)}: pip install 'autoreid[export]'")
