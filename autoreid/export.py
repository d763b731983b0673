"""`python -m autoreid.export`: a trained network as an ONNX file."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from autoreid.cli import run_command
from autoreid.embedder import load_network
from autoreid.errors import RunError
from autoreid.files import make_folder, write_atomically

#: Largest difference between onnxruntime's embedding and the network's, as a share of the largest feature.
TOLERANCE = 1e-4

_DESCRIPTION = """\
Writes the network of a training's checkpoint as an ONNX file, for any number of images of the training's size.

Its input `images` (B, 3, H, W) is float32 RGB on a scale of 0 to 1, less ImageNet's means and over its deviations;
its output `embedding` (B, D) is what is ranked. Needs the packages of `pip install 'autoreid[export]'`.
"""
_EXAMPLES = """\
examples:
  python -m autoreid.export runs/market/checkpoints/best.pt --output market.onnx --check
  python -m autoreid.export runs/market --output market.onnx

exit status: 0 written; 1 a package is missing, the file cannot be written, or onnxruntime gives another embedding;
2 the checkpoint is wrong
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exports what the command line names, prints what was written, and returns the exit status."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _export(arguments.checkpoint, arguments.output, arguments.check))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.export",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a training's checkpoint, or its run folder"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .onnx file to write")
    parser.add_argument(
        "--check", action="store_true", help="compare with the network in onnxruntime before writing"
    )
    return parser


def _export(checkpoint: Path, output: Path, check: bool) -> int:
    _require("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    network, config = load_network(checkpoint)
    height, width = config.data.height, config.data.width
    make_folder(output.parent, "give another --output")
    model = export_onnx(network, height, width)
    if check:
        difference = check_onnx(model, network, height, width)
        print(f"largest difference in onnxruntime: {difference:.2g}")
    write_atomically(output, model)
    print(f"{output}: images (B, 3, {height}, {width}) -> embedding, {len(model) / 1e6:.1f} MB")
    return 0


def export_onnx(network: nn.Module, height: int, width: int) -> bytes:
    """The ONNX model of a network in evaluation mode, for any number of images of one size."""
    # torch takes a dimension that is 1 in the example for one that always is.
    example = torch.zeros(2, 3, height, width)
    with torch.no_grad():  # networks compute some things otherwise where gradients are wanted
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
    """Compares an ONNX model in onnxruntime with the network it is of, on one and on three random images.

    Returns:
        The largest absolute difference of a feature.

    Raises:
        RunError: onnxruntime gives another shape, or a difference above TOLERANCE of the largest feature.
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
                f"onnxruntime gives {tuple(found.shape)} where it should give {tuple(expected.shape)}"
            )
        difference = (found - expected).abs().max().item()
        largest = expected.abs().max().item()
        # Written so that a difference that is not a number fails too.
        if not difference <= TOLERANCE * largest:
            raise RunError(
                f"onnxruntime's embedding differs from the network's by {difference:.2g}, where features go up "
                f"to {largest:.2g}; nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise RunError(f"export needs {' and '.join(missing)}: pip install 'autoreid[export]'")


if __name__ == "__main__":
    sys.exit(main())
