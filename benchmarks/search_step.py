"""Time and memory of a pass of the supernets, compared with supernets with one module for each candidate.

    python benchmarks/search_step.py [--quick] [--threads N] [--compile] [--json]

The baselines are the references of the tests (per_edge.py, per_block.py and msinet.py in tests/helpers) with the same
weights. All run interleaved in one process, on a GPU if there is one. With --compile, compiled supernets are
measured as well; each takes minutes to compile. Memory is that of tensors kept for the backward pass. At the end,
whole steps of the quickstart's search are measured, including data loading.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autoreid.config import Msinet, OsnetAin, ReidCell, Search
from autoreid.data.images import Images
from autoreid.data.training_data import build_search_data, generate_people
from autoreid.distributed import StopSignal, World
from autoreid.layers.batch_norm import share_batch_statistics
from autoreid.recipes import load_config
from autoreid.search.build import build_search
from autoreid.search.task import SearchTask
from autoreid.spaces.build import build_space
from autoreid.spaces.osnet_ain.blocks import MixedBlock
from autoreid.spaces.reid_cell.space import ReidCellSpace
from tests.helpers.msinet import plain_cells
from tests.helpers.per_block import PerBlock
from tests.helpers.per_edge import per_edge_cell

ROOT = Path(__file__).resolve().parents[1]
ORACLE, FUSED, COMPILED = "one by one", "fused", "fused and compiled"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Size(NamedTuple):
    """A supernet, and the size of its batches and images."""

    search: Search
    batch: int
    height: int
    width: int


SIZES = {
    "quickstart": Size(Search(reid_cell=ReidCell(channels=12, cells_per_stage=(1, 1))), 32, 96, 48),
    "3 cells, stride-1 stem, C 16": Size(
        Search(reid_cell=ReidCell(stem="darts", cells_per_stage=(1, 1, 1))), 4, 64, 32
    ),
    "8 cells, 1/4-resolution stem, C 16": Size(Search(), 4, 256, 128),
    "OSNet quickstart (width 0.25)": Size(
        Search(space="osnet_ain", osnet_ain=OsnetAin(width=0.25)), 32, 64, 32
    ),
    "OSNet (width 1)": Size(Search(space="osnet_ain"), 4, 256, 128),
    "MSINet quickstart (width 0.25)": Size(Search(space="msinet", msinet=Msinet(width=0.25)), 32, 96, 48),
    "MSINet (width 1)": Size(Search(space="msinet"), 4, 256, 128),
}


def one_by_one(supernet: nn.Module, search: Search) -> nn.Module:
    """Return a copy of a supernet with one module for each candidate."""
    oracle = copy.deepcopy(supernet)
    if search.space == "osnet_ain":
        for name, block in [*oracle.named_modules()]:
            if isinstance(block, MixedBlock):
                parent, _, place = name.rpartition(".")
                setattr(oracle.get_submodule(parent), place, PerBlock(block))
        return oracle
    if search.space == "msinet":
        plain_cells(oracle)
        return oracle
    plans, settings = ReidCellSpace(search)._plans(), search.reid_cell
    oracle.cells = nn.ModuleList(
        per_edge_cell(
            cell, settings.operations, settings.nodes, settings.parts, plan.in_channels, plan.channels,
            plan.kind == "reduce", plan.after_reduction,
        )
        for cell, plan in zip(supernet.cells, plans, strict=True)  # type: ignore[arg-type]
    )  # fmt: skip
    return oracle


def kept_bytes(forward: Callable[[], object]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without weights."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storages.values())


def variants(size: Size, compiled: bool) -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    """Return the variants of a supernet by name, with uniform mixing weights for each."""

    def build(**changes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
        torch.manual_seed(0)
        space = build_space(size.search.model_copy(update=changes))
        mixing = {
            name: torch.full(group.shape, 1 / len(group.columns), device=DEVICE).requires_grad_()
            for name, group in space.choices().items()
        }
        return space.build_supernet(100).to(DEVICE), mixing

    supernet, mixing = build()
    found = {
        ORACLE: (one_by_one(supernet, size.search), mixing),
        FUSED: (supernet, mixing),
        "recomputing": build(activation_checkpointing="cell"),
    }
    if compiled:
        found[COMPILED] = copy.deepcopy(supernet), mixing
        found[COMPILED][0].compile()
    if size.search.space == "reid_cell":
        found["partial channels, K 4"] = build(
            reid_cell=size.search.reid_cell.model_copy(update={"partial_channels": 4})
        )
    for name in found.keys() - {ORACLE}:
        share_batch_statistics(found[name][0])  # as in searches; norms are then faster on CPUs
    return found


def clock() -> float:
    """Return the time in seconds, after synchronising the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(size: Size, rounds: int, compiled: bool) -> dict[str, dict[str, float]]:
    """Return medians over interleaved rounds, after a first round for compilation."""
    nets = variants(size, compiled)
    images = torch.randn(size.batch, 3, size.height, size.width, device=DEVICE)
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(rounds + 1):
        for name, (net, mixing) in nets.items():
            started = clock()
            embedding, logits = net(images, mixing)
            (embedding.square().sum() + logits.square().sum()).backward()
            seconds[name].append(clock() - started)
    times = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    kept = {name: kept_bytes(lambda net=net, mix=mix: net(images, mix)) for name, (net, mix) in nets.items()}  # type: ignore[misc]
    return {
        name: {
            "ms_an_image": 1e3 * times[name] / size.batch,
            "time_ratio": times[name] / times[ORACLE],
            "mb_an_image": kept[name] / size.batch / 1e6,
            "bytes_ratio": kept[name] / kept[ORACLE],
        }
        for name in nets
    }


def end_to_end(recipe: str, steps: int, compiled: bool) -> dict[str, dict[str, float]]:
    """Return the images per second of whole search steps (loading, alphas and weights), over interleaved steps."""
    fused = ReidCellSpace.build_supernet
    build = {FUSED: fused, ORACLE: lambda space, count: one_by_one(fused(space, count), space.search)}
    if compiled:
        build[COMPILED] = fused
    with tempfile.TemporaryDirectory() as folder:
        world = World(0, 1, 0, DEVICE)
        tasks: dict[str, SearchTask] = {}
        for name, builder in build.items():
            changes = [f"data.root={folder}", f"training.compile={json.dumps(name == COMPILED)}"]
            config = load_config(ROOT / "configs" / recipe, changes)
            generate_people(config.data)
            with mock.patch.object(ReidCellSpace, "build_supernet", builder):
                images = Images(config.data.height, config.data.width)
                tasks[name] = build_search(config, build_search_data(config, world, images), world)
        seconds: dict[str, list[float]] = {name: [] for name in tasks}
        with StopSignal() as stop:
            for _ in range(steps + 1):
                for name, task in tasks.items():
                    started = clock()
                    task.step(stop)
                    seconds[name].append(clock() - started)
    times = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    batch = config.data.batch_size
    return {
        name: {"images_a_second": batch / value, "time_ratio": value / times[ORACLE]}
        for name, value in times.items()
    }


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="only the sizes of the quickstarts, with two rounds"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--compile", action="store_true", help="also measure compiled supernets")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = {name: size for name, size in SIZES.items() if not arguments.quick or "quickstart" in name}
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, size in sizes.items():
        rows[name] = measure(size, 2 if arguments.quick else 7, arguments.compile)
    rows["search with configs/quickstart.yaml"] = end_to_end(
        "quickstart.yaml", 3 if arguments.quick else 15, arguments.compile
    )
    if arguments.json:
        print(json.dumps({"device": str(DEVICE), "threads": arguments.threads, "sizes": rows}))
        return
    for name, found in rows.items():
        print(name)
        for variant, values in found.items():
            print(f"  {variant:<24}" + "".join(f"{key} {value:<10.3g}" for key, value in values.items()))


if __name__ == "__main__":
    main()
