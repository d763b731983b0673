"""Export a trained network to ONNX."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from autoreid.architecture import architecture_of
from autoreid.deployment.metadata import Channels, Metadata
from autoreid.deployment.onnx_export import export_onnx
from autoreid.deployment.onnx_file import Agreement, OnnxFile, Pictures
from autoreid.embedder import Embedder
from autoreid.errors import RunError
from autoreid.files import make_folder, write_atomically
from autoreid.networks import load_network

#: Largest relative difference from the network's embeddings, in float32 and from the same pixels.
TOLERANCE = 1e-4
#: The same for half precision, and for pictures that ONNX Runtime has resized: a cosine of at least 0.9987.
LOOSE_TOLERANCE = 5e-2


def execute(options: argparse.Namespace) -> None:
    """Export the checkpoint that the command line names."""
    output, check = options.output, options.check
    _require(half=options.precision == "float16", check=check)
    network, config, report = load_network(options.checkpoint, architecture_of(options))
    if report is not None:
        print(report)
    channels: Channels = "BGR" if options.bgr else "RGB"
    metadata = Metadata.of(config, options.preprocessing, channels, options.precision)
    make_folder(output.parent, "choose another --output")
    model = export_onnx(network, metadata)
    if check:
        agreement = check_onnx(model, output, Embedder(network, metadata.height, metadata.width, "cpu"))
        print(
            f"onnxruntime agrees: smallest cosine {agreement.cosine:.6f}, "
            f"largest relative difference {agreement.difference:.2g}"
        )
    write_atomically(output, model)
    shape = ", ".join(map(str, ("B", *metadata.input_shape)))
    kind = "float32" if metadata.preprocessing == "none" else f"uint8 {channels}"
    print(f"{output}: images ({shape}) {kind} -> embedding, {len(model) / 1e6:.1f} MB")


def check_onnx(model: bytes, output: Path, embedder: Embedder) -> Agreement:
    """Compare an ONNX model, run in onnxruntime, with its network, on pictures of several sizes and batches.

    Args:
        output: the file to be written, for messages.
        embedder: the network, which resizes pictures with Pillow.

    Raises:
        RunError: the embeddings differ by more than the tolerance.
        DataError: they have another shape.
    """
    exported = OnnxFile(model, str(output))
    metadata = exported.metadata
    agreement = exported.compare(embedder, _pictures(metadata.height, metadata.width))
    is_loose = metadata.precision == "float16" or metadata.preprocessing == "resize"
    limit = LOOSE_TOLERANCE if is_loose else TOLERANCE
    # Negated, so that a difference of NaN fails too.
    if not agreement.difference <= limit:
        raise RunError(
            f"onnxruntime's embeddings differ from the network's by up to {agreement.difference:.2g} of their length, "
            f"more than {limit:g}, with a smallest cosine of {agreement.cosine:.4f}; nothing was written"
        )
    return agreement


def _pictures(height: int, width: int) -> Iterator[Pictures]:
    """Yield batches of one and three random smooth pictures, of the given size, smaller and larger."""
    random = np.random.default_rng(0)
    for count, rows, columns in (
        (1, height, width),
        (3, height, width),
        (1, height // 2 + 1, width // 2 + 1),
        (3, height * 2 + 1, width * 2 - 1),
    ):
        coarse = random.integers(0, 256, (count, 16, 8, 3), dtype=np.uint8)
        fine = [Image.fromarray(one).resize((columns, rows), Image.Resampling.BICUBIC) for one in coarse]
        yield np.stack([np.asarray(one) for one in fine])


def _require(half: bool, check: bool) -> None:
    packages = ["onnx", "onnxscript", *["onnxconverter_common"] * half, *["onnxruntime"] * check]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise RunError(f"export requires {' and '.join(missing)}: pip install 'autoreid[export]'")
