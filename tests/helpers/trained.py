"""A training checkpoint of a small derived network, in the format of the training loop, but without training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from autoreid.config import Config
from autoreid.spaces.build import build_model
from autoreid.spaces.reid_cell.genotype import CellGenotype, Edge

CELL = ((Edge("sep_conv_3x3", 0), Edge("part_aware", 1)), (Edge("skip_connect", 0), Edge("max_pool_3x3", 2)))
OPTIONS = {
    "genotype": str(CellGenotype(normal=CELL, reduce=CELL)),
    "channels": 4,
    "cells_per_stage": (1, 1),
    "parts": 6,
    "auxiliary": True,
}
HEIGHT, WIDTH, DIMENSIONS = 64, 32, 16


def lively_network(seed: int, images: torch.Tensor) -> nn.Module:
    """Return a network with batch statistics of the given images, so that their embeddings differ."""
    torch.manual_seed(seed)
    network = build_model("derived", 7, **OPTIONS)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # cumulative average
            nn.init.uniform_(module.weight, 0.5, 1.5)
    with torch.no_grad():
        network(images)
    return network.eval()


def small_network(seed: int) -> nn.Module:
    """The same for images of noise."""
    generator = torch.Generator().manual_seed(seed)
    return lively_network(seed, torch.randn(16, 3, HEIGHT, WIDTH, generator=generator))


def write_checkpoint(
    path: Path, network: nn.Module, task: str = "train", training: dict | None = None, **parts: dict
) -> Path:
    """Save a checkpoint; `parts` are added to the state, such as the moving average `ema`; `training` is a section."""
    config = Config(
        task=task,
        task_name="tiny",
        data={"root": Path("nowhere"), "height": HEIGHT, "width": WIDTH},
        search={"reid_cell": {"parts": 1}},
        model={"name": "derived", "options": OPTIONS},
        training=training or {},
    )
    state = {"network": network.state_dict(), "step": 3} | parts
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state": state, "config": config.to_yaml(), "num_identities": 7}, path)
    return path
