"""autoreid searches, trains and ranks networks for person re-identification on Slurm clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from autoreid.config import Precision
    from autoreid.embedder import Embedder

__all__ = ["build_model", "load"]


def load(
    path: str | Path, device: str | torch.device = "cpu", precision: Precision | None = None
) -> Embedder:
    """A trained network, ready to embed images: `autoreid.load("runs/market")(["a.jpg", "b.jpg"])` -> (2, D).

    Args:
        path: a training's checkpoint, or its run folder, whose best checkpoint is taken.
        device: what to compute on, such as "cuda".
        precision: "float32", "tf32" or "bfloat16"; None for that of the training.

    Raises:
        DataError: there is no checkpoint, it cannot be read, or it is a search's.
        ConfigError: there is no such device, or the checkpoint's config is not one that this version knows.
    """
    # Here, so that `import autoreid` does not wait for torch.
    from autoreid.embedder import load_embedder

    return load_embedder(path, device, precision)


def build_model(name: str, num_identities: int, **options: Any) -> nn.Module:
    """Build a fixed or derived network with fresh weights; see `autoreid.spaces.build_model`."""
    from autoreid import spaces

    return spaces.build_model(name, num_identities, **options)
