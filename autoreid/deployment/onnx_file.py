"""Runs exported networks in ONNX Runtime, and compares them with their networks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from autoreid.data.decoding import resize
from autoreid.data.transforms import normalise
from autoreid.deployment.metadata import Metadata
from autoreid.embedder import Embedder
from autoreid.errors import DataError, RunError

#: RGB pictures (B, h, w, 3) of one size.
Pictures = npt.NDArray[np.uint8]


class Agreement(NamedTuple):
    """How much the embeddings f of an exported network are like those of its network, e.

    Attributes:
        cosine: the smallest cosine of f and e.
        difference: the largest relative difference |f - e| / |e|.
    """

    cosine: float
    difference: float


class OnnxFile:
    """An exported network, which runs in ONNX Runtime on the CPU, with as many threads as PyTorch uses.

    Args:
        model: the file that `autoreid.export` has written, or its content.
        name: the name in messages.

    Attributes:
        metadata: the entries of the file.

    Raises:
        DataError: ONNX Runtime cannot read the file, or it was not written by `autoreid.export`.
        RunError: onnxruntime is not installed.
    """

    def __init__(self, model: Path | bytes, name: str) -> None:
        self.name = name
        self._session = _open(model, name)
        self.metadata = Metadata.read(self._session.get_modelmeta().custom_metadata_map, name)
        inputs = {given.name: tuple(given.shape[1:]) for given in self._session.get_inputs()}
        if inputs != {"images": self.metadata.input_shape}:
            expected = ", ".join(map(str, ("B", *self.metadata.input_shape)))
            raise DataError(f"{name}: expected one input `images` ({expected}), as its metadata says")

    def prepare(self, pictures: Pictures) -> npt.NDArray[Any]:
        """Return pictures as the file's input: with all steps of pre-processing that it does not do itself."""
        metadata = self.metadata
        if metadata.preprocessing != "resize":
            each = [resize(Image.fromarray(one), metadata.height, metadata.width) for one in pictures]
            pictures = np.stack(each).transpose(0, 2, 3, 1)
        if metadata.preprocessing == "none":
            return normalise(torch.from_numpy(pictures.transpose(0, 3, 1, 2))).numpy()
        return np.ascontiguousarray(pictures[..., ::-1] if metadata.channels == "BGR" else pictures)

    def run(self, images: npt.NDArray[Any]) -> Tensor:
        """Embed prepared images; returns (B, D) float32."""
        (embedding,) = self._session.run(["embedding"], {"images": images})
        return torch.from_numpy(embedding)

    def compare(self, embedder: Embedder, batches: Iterable[Pictures]) -> Agreement:
        """Compare the embeddings of pictures with those of the network.

        Raises:
            DataError: the embeddings have another shape.
        """
        found, expected = [], []
        for pictures in batches:
            found.append(self.run(self.prepare(pictures)))
            expected.append(embedder(pictures))
            if found[-1].shape != expected[-1].shape:
                raise DataError(
                    f"{self.name}: returns embeddings of shape {tuple(found[-1].shape)}, expected "
                    f"{tuple(expected[-1].shape)}"
                )
        return _agreement(torch.cat(found).double(), torch.cat(expected).double())


def _agreement(found: Tensor, expected: Tensor) -> Agreement:
    difference = (found - expected).norm(dim=1) / expected.norm(dim=1)
    return Agreement(F.cosine_similarity(found, expected).min().item(), difference.max().item())


def _open(model: Path | bytes, name: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RunError(f"{name}: requires onnxruntime: pip install 'autoreid[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many kinds, without a common base class
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"{name}: ONNX Runtime cannot read the file: {reason}") from error
