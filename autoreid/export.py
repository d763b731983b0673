"""python -m autoreid.export: export a trained network to ONNX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from autoreid.architecture import add_architecture_options, architecture_of
from autoreid.cli import run_command
from autoreid.config import expand
from autoreid.deployment.metadata import ExportPrecision, Preprocessing
from autoreid.errors import ConfigError

_DESCRIPTION = """\
Export the network of a training checkpoint, or one with weights of another program, to ONNX, for any number of images
in a batch.

Without --preprocessing, the input `images` (B, 3, H, W) is float32 RGB in [0, 1], normalised with ImageNet's mean and
standard deviation. The output `embedding` (B, D) is float32 and used for ranking. Requires the packages of
`pip install 'autoreid[export]'`.
"""
_EXAMPLES = """\
examples:
  python -m autoreid.export runs/market/checkpoints/best.pt --output market.onnx --check
  python -m autoreid.export runs/market --output market.onnx
  python -m autoreid.export runs/market --output market.onnx --preprocessing normalise --precision float16 --check
  python -m autoreid.export osnet_x1_0_market.pth --model osnet_x1_0 --output osnet.onnx

exit status: 0 written; 1 a package is missing, the file cannot be written, or onnxruntime's embedding differs;
2 the command line or the checkpoint is wrong
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; raises ConfigError if an option of the network, or the output, is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.export",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        type=expand,
        metavar="CHECKPOINT",
        help="checkpoint of a training, or its run folder; or a file of weights, with --model",
    )
    parser.add_argument(
        "--output", type=expand, required=True, metavar="FILE", help="the .onnx file to write"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare the network with onnxruntime's result before writing"
    )
    parser.add_argument(
        "--preprocessing",
        choices=get_args(Preprocessing),
        default="none",
        help="what the file does before the network. normalise: it takes uint8 RGB pictures (B, H, W, 3) of the "
        "network's size; resize: of any size, for ONNX Runtime on CPUs (default: none)",
    )
    parser.add_argument(
        "--bgr",
        action="store_true",
        help="pictures have their channels in the order of OpenCV; requires --preprocessing normalise or resize",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(ExportPrecision),
        default="float32",
        help="number format of weights and computation; input and output stay as they are (default: float32)",
    )
    add_architecture_options(parser)
    options = parser.parse_args(arguments)
    architecture_of(options)
    if options.output.is_dir():
        raise ConfigError(f"--output {options.output}: is a folder; give the .onnx file to write")
    if options.bgr and options.preprocessing == "none":
        raise ConfigError("--bgr: requires --preprocessing normalise or resize; normalised images are RGB")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        from autoreid.commands.export import execute

        execute(options)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
