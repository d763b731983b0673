"""A forward and backward pass of the supernet, fused and with one module for each candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autoreid.config import ReidCell, Search
from autoreid.spaces.build import build_space
from benchmarks.gpu.harness import Case, Check, Figures
from benchmarks.gpu.meters import clock, count_kernels, peak_gigabytes, synchronize, tf32
from benchmarks.search_step import one_by_one

#: The number of training identities of Market-1501.
IDENTITIES = 751
#: The supernet of a dry run.
TINY: dict[str, Any] = {"cells_per_stage": (1, 1), "channels": 4, "nodes": 2, "parts": 2}


class Pass:
    """A forward and backward pass with uniform mixing weights.

    Args:
        check: the part, with its device and whether sizes are tiny.
        precision: float32, tf32 or bfloat16.
        batch: number of images, of 256×128 pixels.
        fused: whether the supernet is fused, or has one module for each candidate.
        settings: of `Search` and its section `reid_cell`, other than the defaults.
    """

    def __init__(self, check: Check, precision: str, batch: int, fused: bool = True, **settings: Any) -> None:
        torch.backends.cudnn.benchmark = True  # shapes never change
        keys = {**check.pick({}, TINY), **settings}
        cell = {key: keys.pop(key) for key in [*keys] if key in ReidCell.model_fields}
        search = Search(reid_cell=ReidCell(**cell), **keys)
        torch.manual_seed(0)
        space = build_space(search)
        supernet = space.build_supernet(IDENTITIES)
        self.network: nn.Module = supernet if fused else one_by_one(supernet, search)
        self.network.to(check.device)
        self.mixing = {
            name: torch.full(group.shape, 1 / len(group.columns), device=check.device, requires_grad=True)
            for name, group in space.choices().items()
        }
        self.images = torch.randn(*check.pick((batch, 3, 256, 128), (4, 3, 64, 32)), device=check.device)
        self.precision = precision

    def forward(self) -> tuple[Tensor, Tensor]:
        """Compute embeddings and logits."""
        half = self.precision == "bfloat16"
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=half):
            embedding, logits = self.network(self.images, self.mixing)
        return embedding, logits

    def __call__(self) -> None:
        """Compute new gradients of the weights and the mixing weights."""
        for tensor in (*self.network.parameters(), *self.mixing.values()):
            tensor.grad = None
        with tf32(self.precision != "float32"):
            embedding, logits = self.forward()
            (embedding.float().square().sum() + logits.float().square().sum()).backward()


def measure(check: Check, one: Pass) -> Figures:
    """Measure time, images per second and memory of a pass."""
    times = clock(one, check.device)
    speed = round(1e3 * len(one.images) / times["ms"])
    return {**times, "images_a_second": speed, "peak_gb": peak_gigabytes(one, check.device)}


def compare(check: Check, precision: str, batch: int, kernels: bool) -> Figures:
    """Compare the fused supernet with one module for each candidate."""
    fused = Pass(check, precision, batch)
    figures = measure(check, fused)
    single = Pass(check, precision, batch, fused=False)
    baseline = measure(check, single)
    figures |= {f"one_by_one_{key}": baseline[key] for key in ("ms", "host_ms", "peak_gb")}
    figures["ratio"] = round(figures["ms"] / baseline["ms"], 3)
    if kernels:
        figures |= count_kernels(fused, check.device)
        figures["one_by_one_kernels"] = count_kernels(single, check.device)["kernels"]
    return figures


def captured(one: Pass) -> Callable[[], None]:
    """Capture a pass as a CUDA graph, and return the function that replays it."""
    device = one.images.device
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            one()
    torch.cuda.current_stream(device).wait_stream(side)
    synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one()
    return graph.replay


def as_graph(check: Check, precision: str, batch: int) -> Figures:
    """Compare a fused pass as a CUDA graph with one module for each candidate, without a graph."""
    baseline = clock(Pass(check, precision, batch, fused=False), check.device)
    fused = Pass(check, precision, batch)
    times = clock(captured(fused), check.device)
    speed = round(1e3 * batch / times["ms"])
    ratio = round(times["ms"] / baseline["ms"], 3)
    return {**times, "images_a_second": speed, "one_by_one_ms": baseline["ms"], "ratio": ratio}


def cases(check: Check) -> Iterator[Case]:
    """Yield precisions and batch sizes, then CUDA graphs, then options that save memory."""
    plans = check.pick(
        [
            ("tf32", 64),
            ("bfloat16", 256),
            ("bfloat16", 64),
            ("tf32", 128),
            ("float32", 64),
            ("bfloat16", 128),
        ],
        [("tf32", 64), ("bfloat16", 256)],
    )
    for number, (precision, batch) in enumerate(plans):
        goal = "1,500 images/s" if (precision, batch) == ("bfloat16", 256) else "ratio 0.6"
        action = partial(compare, check, precision, batch, kernels=number == 0)
        yield Case(f"fused, {precision}, batch {batch}", action, 8, goal)
    if check.device.type == "cuda":
        for precision, batch in ("tf32", 64), ("bfloat16", 64), ("bfloat16", 256):
            action = partial(as_graph, check, precision, batch)
            yield Case(f"fused, {precision}, CUDA graph, batch {batch}", action, 8, "ratio 0.25")
    for name, settings in (
        ("cells recomputed", {"activation_checkpointing": "cell"}),
        ("partial channels 4", {"partial_channels": 4}),
    ):

        def lean(settings: dict[str, Any] = settings) -> Figures:
            return measure(check, Pass(check, "tf32", 128, **settings))

        yield Case(f"fused, tf32, {name}, batch 128", lean)
