"""Build searches and trainings from the recipes of configs/, with synthetic people."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autoreid import distributed
from autoreid.commands.train import build_task
from autoreid.config import Config, SyntheticPeople
from autoreid.data.datasets.market1501 import FOLDERS
from autoreid.data.synthetic.people import write_synthetic_people
from autoreid.data.training_data import read_datasets, run_images
from autoreid.distributed import World
from autoreid.recipes import load_config
from autoreid.search.task import SearchTask
from autoreid.training.task import TrainTask
from benchmarks.gpu.harness import ROOT, Check

#: Overrides of a recipe by mode.
MODES: dict[str, tuple[str, ...]] = {
    "float32": ("training.precision=float32",),
    "tf32": ("training.precision=tf32",),
    "bfloat16": ("training.precision=bfloat16",),
    "channels last": ("training.channels_last=true",),
    "CUDA graphs": ("training.cuda_graphs=true",),
    "deterministic": ("distributed.deterministic=true",),
    "first order": ("search.order=first",),
    "alphas in float32": ("search.second_order_precision=float32",),
    "alphas in tf32": ("search.second_order_precision=tf32",),
    "alphas in bfloat16": ("search.second_order_precision=bfloat16",),
}
#: Overrides for dry runs, by section of the config or by space.
TINY = {
    "data": ("data.height=64", "data.width=32", "data.batch_size=8", "data.workers=0"),
    "reid_cell": (
        "search.reid_cell.parts=2",
        "search.reid_cell.channels=4",
        "search.reid_cell.nodes=2",
        "search.reid_cell.cells_per_stage=[1, 1]",
    ),
    "osnet_ain": ("search.osnet_ain.width=0.25",),
}
#: Copies of each training image, so that an epoch is long enough for realistic waits for data.
COPIES = 8


def overrides(modes: Sequence[str]) -> list[str]:
    """Return the overrides of some modes."""
    return [override for mode in modes for override in MODES[mode]]


def people(check: Check) -> Path:
    """Return a folder with the data set `people`, which is generated if it does not exist."""
    folder = check.scratch / "data"
    if (folder / "people").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = check.pick(
        SyntheticPeople(train_identities=48, test_identities=8),
        SyntheticPeople(
            train_identities=16, test_identities=2, images_per_identity=8, cameras=2, height=64, width=32
        ),
    )
    drawn = folder / "drawn"
    write_synthetic_people(drawn, settings)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        for kind in FOLDERS.values():
            copies = check.pick(COPIES, 1) if kind == FOLDERS["train"] else 1
            _copy(drawn / kind, Path(partial) / "people" / kind, copies)
        (Path(partial) / "people").rename(folder / "people")
    shutil.rmtree(drawn)
    return folder


def _copy(source: Path, target: Path, copies: int) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        for copy in range(copies):
            shutil.copyfile(path, target / f"{path.stem}{copy}{path.suffix}")


def recipe(check: Check, name: str, *changes: str) -> Config:
    """Return the config of the recipe `configs/NAME` with the synthetic people.

    Args:
        changes: further overrides; those of a dry run take precedence.
    """
    given = [
        f"data.root={people(check)}",
        "data.sources=[people]",
        "data.targets=[]",
        "data.synthetic={}",
        "data.combine_all=false",
        "data.held_out_fraction=0.1",
        "evaluation.split=held_out",
        f"distributed.device={check.device.type}",
        "distributed.timeout_seconds=60",
        f"output_dir={check.scratch / 'runs'}",
        f"genotype_dir={check.scratch / 'genotypes'}",
    ]
    path = ROOT / "configs" / name
    config = load_config(path, [*given, *changes])
    if not check.dry_run:
        return config
    tiny = [*TINY["data"], *(TINY[config.search.space] if config.task == "search" else ())]
    return load_config(path, [*given, *changes, *tiny])


@contextmanager
def placed(config: Config) -> Iterator[World]:
    """Set up the device and, under a launcher, the process group, as `python -m autoreid.train` does."""
    with distributed.setup_for(config.distributed) as world:
        yield world


def build(config: Config, world: World) -> SearchTask | TrainTask:
    """Build the search or training as `python -m autoreid.train` does, with its image cache."""
    datasets = read_datasets(config)
    return build_task(config, world, run_images(config, world, datasets), datasets)[1]
