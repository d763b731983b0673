"""Fixed networks: training steps with loading, and the speed of embedding images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from autoreid.config import Config
from autoreid.training.build import memory_format
from benchmarks.gpu.harness import Case, Check, Figures
from benchmarks.gpu.meters import clock
from benchmarks.gpu.recipes import build, overrides, placed, recipe
from benchmarks.gpu.steps import measure_steps

#: Recipes, with overrides for images of 256×128, and further ones for dry runs with images of 64×32.
RECIPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "baseline_resnet50.yaml": ((), ()),
    "osnet_ain_train.yaml": ((), ("model.name=osnet_ain_x0_25",)),
    "auto_reid_train.yaml": (
        ("data.height=256",),
        ("model.options.channels=4", "model.options.cells_per_stage=[1, 1]", "model.options.auxiliary=false"),
    ),
}
#: The combinations of modes to measure.
WAYS: tuple[tuple[str, ...], ...] = ((), ("bfloat16",), ("bfloat16", "channels last"))


def config_of(check: Check, name: str, modes: tuple[str, ...]) -> Config:
    """Return the config of a recipe in some modes, for batches of 64 images of 256×128."""
    full, tiny = RECIPES[name]
    changes = (*full, *check.pick((), tiny), *overrides(modes))
    return recipe(check, name, "data.batch_size=64", *changes)


def embed(check: Check, name: str, modes: tuple[str, ...]) -> Figures:
    """Measure the images per second of a network in evaluation mode, with batches of 256."""
    config = config_of(check, name, modes)
    size = (check.pick(256, 4), 3, config.data.height, config.data.width)
    half = config.training.precision == "bfloat16"
    with placed(config) as world:
        network = build(config, world).state.network.eval()
        images = torch.randn(*size, device=world.device).to(memory_format=memory_format(config.training))
        with torch.inference_mode(), torch.autocast(world.device.type, torch.bfloat16, enabled=half):
            times = clock(partial(network, images), world.device)
    return {**times, "images_a_second": round(1e3 * len(images) / times["ms"])}


def cases(check: Check) -> Iterator[Case]:
    """Yield training steps and embedding of each network, in each combination of modes."""
    for name in check.pick(list(RECIPES), list(RECIPES)[1:]):
        for modes in check.pick(WAYS, WAYS[:1]):
            title = ", ".join((name.removesuffix(".yaml"), *modes))

            def step(name: str = name, modes: tuple[str, ...] = modes) -> Figures:
                return measure_steps(check, config_of(check, name, modes))

            yield Case(f"{title}, batch 64", step, 8)
            yield Case(f"{title}, embedding", partial(embed, check, name, modes))
