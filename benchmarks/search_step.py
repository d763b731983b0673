"""Forward and backward pass of the supernet against one mixed operation an edge: time and bytes kept in between.

    python benchmarks/search_step.py [--quick] [--threads N] [--json]

The baseline is the tests' oracle (tests/per_edge.py) with the same weights. Both run in turn, in one process.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autoreid.config import Search
from autoreid.search.reid_cell import ReidCellSpace
from tests.per_edge import per_edge_cell


class Size(NamedTuple):
    """A supernet and its images."""

    search: Search
    batch: int
    height: int
    width: int


SIZES = {
    "quickstart": Size(Search(channels=12, cells_per_stage=(1, 1)), 32, 96, 48),
    "3 cells, stride-1 stem, C 16": Size(Search(stem="darts", cells_per_stage=(1, 1, 1)), 4, 64, 32),
    "8 cells, 1/4-resolution stem, C 16": Size(Search(), 4, 256, 128),
}


def per_edge(supernet: nn.Module, size: Size) -> nn.Module:
    """The same supernet with the oracle's cells."""
    oracle = copy.deepcopy(supernet)
    search = size.search
    plans = ReidCellSpace(search)._plans()
    oracle.cells = nn.ModuleList(
        per_edge_cell(
            cell, search.operations, search.nodes, search.parts, plan.in_channels, plan.channels,
            plan.kind == "reduce", plan.after_reduction,
        )
        for cell, plan in zip(supernet.cells, plans, strict=True)  # type: ignore[arg-type]
    )  # fmt: skip
    return oracle


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of all storages that a forward pass keeps for the backward pass, weights left out."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storages.values())


def measure(size: Size, rounds: int) -> dict[str, float]:
    """Medians of interleaved runs."""
    torch.manual_seed(0)
    space = ReidCellSpace(size.search)
    fused = space.build_supernet(100)
    nets = {"fused": fused, "per_edge": per_edge(fused, size)}
    images = torch.randn(size.batch, 3, size.height, size.width)
    mixing = {
        name: torch.full(group.shape, 1 / len(group.columns)).requires_grad_()
        for name, group in space.choices().items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(rounds + 1):
        for name, net in nets.items():
            started = time.perf_counter()
            embedding, logits = net(images, mixing)
            (embedding.square().sum() + logits.square().sum()).backward()
            seconds[name].append(time.perf_counter() - started)
    kept = {name: kept_bytes(lambda net=net: net(images, mixing)[0]) for name, net in nets.items()}  # type: ignore[misc]
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {
        "ms_an_image": 1e3 * medians["fused"] / size.batch,
        "per_edge_ms_an_image": 1e3 * medians["per_edge"] / size.batch,
        "time_ratio": medians["fused"] / medians["per_edge"],
        "mb_an_image": kept["fused"] / size.batch / 1e6,
        "per_edge_mb_an_image": kept["per_edge"] / size.batch / 1e6,
        "bytes_ratio": kept["fused"] / kept["per_edge"],
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the first size, two rounds")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = dict(list(SIZES.items())[:1]) if arguments.quick else SIZES
    rows = {name: measure(size, 2 if arguments.quick else 7) for name, size in sizes.items()}
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "sizes": rows}))
        return
    for name, row in rows.items():
        print(f"{name}: {', '.join(f'{key} {value:.3g}' for key, value in row.items())}")


if __name__ == "__main__":
    main()
