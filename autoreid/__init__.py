"""autoreid searches, trains and ranks networks for person re-identification on Slurm clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch import nn

    from autoreid.config import Precision
    from autoreid.embedder import Embedder

__all__ = ["build_model", "load"]


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    size: tuple[int, int] = (256, 128),
) -> Embedder:
    """A trained network, ready to embed images: `autoreid.load("runs/market")(["a.jpg", "b.jpg"])` -> (2, D).

    Weights of other programs need the name of their network: `autoreid.load("osnet.pth", model="osnet_x1_0")`.

    Args:
        path: a training's checkpoint, or its run folder, whose best checkpoint is taken; or a file with weights.
        device: what to compute on, such as "cuda".
        precision: "float32", "tf32" or "bfloat16"; None for that of the training.
        model: the network, for weights of another program, such as torchreid or torchvision.
        options: options of `model`, such as {"last_stride": 1} of resnet50.
        size: height and width in pixels to which images are resized for `model`.

    Raises:
        DataError: there is no checkpoint, it cannot be read, it is a search's, or the weights are for another network.
        ConfigError: there is no such device or model, or the checkpoint's config is not one that this version knows.
    """
    # Here, so that `import autoreid` does not wait for torch.
    from autoreid.architecture import Architecture
    from autoreid.embedder import load_embedder

    architecture = None if model is None else Architecture(model, options or {}, *size)
    return load_embedder(path, device, precision, architecture)


def build_model(name: str, num_identities: int, **options: Any) -> nn.Module:
    """Build a fixed or derived network with fresh weights; see `autoreid.spaces.build.build_model`."""
    from autoreid.spaces import build

    return build.build_model(name, num_identities, **options)
