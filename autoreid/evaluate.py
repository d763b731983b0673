"""python -m autoreid.evaluate: mAP and CMC of checkpoints on data sets, or of feature files from any program."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import get_args

from autoreid.architecture import add_architecture_options, architecture_of
from autoreid.cli import run_command
from autoreid.config import Metric, Precision, expand
from autoreid.errors import ConfigError
from autoreid.named_paths import named_paths

#: Default exponent of the query expansion, as in its paper.
ALPHA = 3.0
#: Number of thumbnails in a picture of 8192 x 8192 pixels, the largest that TensorBoard shows.
MAX_PROJECTED = 16_384
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
  python -m autoreid.evaluate --checkpoint ours=runs/retrain --data /data/market1501 --latency --onnx ours=retrain.onnx
  python -m autoreid.evaluate --checkpoint runs/retrain --data /data/market1501 --query-expansion 10 --roc
  python -m autoreid.evaluate --query q.npz --gallery g.npz --metric cosine --rerank --json
  torchrun --nproc-per-node 4 -m autoreid.evaluate --checkpoint runs/retrain --data /data/msmt17

A feature file contains the arrays features (images, dimensions), identities and cameras (images,), and optionally
paths (images,) as text, for the pictures of ranked lists.

exit status: 0 done; 1 failed; 2 the command line or a file is wrong
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Returns:
        The options; `checkpoint`, `data` and `onnx` are paths by name.

    Raises:
        ConfigError: options contradict each other, or a path does not exist.
    """
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.evaluate",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_inputs(parser.add_argument_group("networks and data"))
    _add_protocol(parser.add_argument_group("protocol"))
    _add_computation(parser.add_argument_group("computation"))
    _add_output(parser.add_argument_group("output"))
    add_architecture_options(parser)
    options = parser.parse_args(arguments)
    _check_combination(options)
    _check_numbers(options)
    if options.query_expansion_alpha is None:
        options.query_expansion_alpha = ALPHA
    options.checkpoint = named_paths("--checkpoint", options.checkpoint)
    options.data = named_paths("--data", options.data)
    options.onnx = named_paths("--onnx", options.onnx)
    for name, path in options.onnx.items():
        if name not in options.checkpoint:
            raise ConfigError(f"--onnx {path}: no --checkpoint has the name {name}; give NAME={path}")
    return options


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    for option, what in (
        ("--checkpoint", "run folder or checkpoint of a trained network, or weights of the network --model"),
        ("--data", "folder of a data set"),
    ):
        add(option, action="append", default=[], metavar="[NAME=]PATH", help=f"{what}; may be repeated")
    add("--query", type=expand, metavar="FILE", help="query features (.npz); requires --gallery")
    add("--gallery", type=expand, metavar="FILE", help="gallery features (.npz); requires --query")
    add(
        "--on-broken-image",
        choices=("error", "skip"),
        default="error",
        help="skip: decode all images first, and leave out those that cannot be read (default: error)",
    )


def _add_protocol(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
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
    add("--flip", action="store_true", help="average the features of each image and its mirror image")
    add(
        "--multi-query",
        choices=("mean", "max"),
        help="merge the images of one person by one camera into one query, by the mean or maximum of their features: "
        "those in gt_bbox of Market-1501, or else those among the queries",
    )
    add(
        "--query-expansion",
        type=int,
        metavar="K",
        help="replace the feature of each query by a weighted mean of itself and its K nearest gallery features, "
        "whatever their identity and camera (alpha query expansion)",
    )
    add(
        "--query-expansion-alpha",
        type=float,
        metavar="A",
        help="a gallery image has weight max(0, cosine similarity)^A in the query expansion; 0 weights all images "
        f"equally (default: {ALPHA:g})",
    )
    add("--rerank", action="store_true", help="k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)")


def _add_computation(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
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
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output",
        type=expand,
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
    add(
        "--projector",
        type=int,
        metavar="N",
        help="also write the features and thumbnails of up to N query and gallery images for TensorBoard's projector: "
        "all images of as many people as fit",
    )
    add("--json", action="store_true", help="print a JSON object instead of the table")
    add(
        "--roc",
        action="store_true",
        help="also print verification measures: true positive rate (TPR) at false positive rates (FPR) of 0.1 to 1e-4, "
        "equal error rate (EER) and area under the ROC curve (AUC); computes all distances twice more",
    )
    add(
        "--latency",
        action="store_true",
        help="also print parameters, multiply-accumulates and latency of each network: median and 95th percentile for "
        "batches of 1 and 32 images on this device",
    )
    add(
        "--onnx",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="exported file of the checkpoint NAME, whose latency in ONNX Runtime is printed as well, after its "
        "embeddings were compared with the checkpoint's; may be repeated",
    )


def _check_combination(options: argparse.Namespace) -> None:
    files, networks = (options.query, options.gallery), (options.checkpoint, options.data)
    if any(files) == any(networks) or not (all(files) or all(networks)):
        raise ConfigError("give either --checkpoint with --data, or --query with --gallery")
    for option in ("--flip", "--precision", "--latency"):
        if getattr(options, option[2:]) and all(files):
            raise ConfigError(f"{option}: requires --checkpoint; features in files cannot be changed")
    if options.onnx and not options.latency:
        raise ConfigError("--onnx: requires --latency")
    if options.multi_query is not None and options.keep_same_camera:
        raise ConfigError(
            "--multi-query: merges the images of a camera, so --keep-same-camera must not be given"
        )
    if options.projector is not None and options.output is None:
        raise ConfigError("--projector: requires --output")
    if options.query_expansion_alpha is not None and options.query_expansion is None:
        raise ConfigError("--query-expansion-alpha: requires --query-expansion")
    if architecture_of(options) is not None and all(files):
        raise ConfigError("--model: requires --checkpoint")


def _check_numbers(options: argparse.Namespace) -> None:
    if (options.projector or 0) > MAX_PROJECTED:
        raise ConfigError(f"--projector {options.projector}: must be at most {MAX_PROJECTED}")
    for option, value, least in (
        ("--batch-size", options.batch_size, 1),
        ("--rows", options.rows, 1),
        ("--workers", options.workers, 0),
        ("--query-expansion", options.query_expansion, 1),
        ("--query-expansion-alpha", options.query_expansion_alpha, 0),
        ("--projector", options.projector, 1),
    ):
        if value is not None and not least <= value < math.inf:
            kind = "a finite number of at least" if isinstance(value, float) else "at least"
            raise ConfigError(f"{option} {value}: must be {kind} {least}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        from autoreid.commands.evaluate import execute

        execute(options)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
