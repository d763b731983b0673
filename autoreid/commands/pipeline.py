"""The checks of jobs/submit_pipeline.py: of the searches, the training of a found network, and the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from autoreid.commands import train
from autoreid.config import Config
from autoreid.data.targets import check_target_folder
from autoreid.distributed import World
from autoreid.models import check_input_size
from autoreid.search.task import SearchTask
from autoreid.spaces.build import build_model


def check(searches: Sequence[Config], ranks: int, recipe: Config, may_generate: bool) -> None:
    """Check the searches, and the training of a found network.

    Args:
        searches: the configs of the searches.
        ranks: number of ranks of a search.
        recipe: of the training of a found network.
        may_generate: whether missing synthetic data sets may be generated; if not, only the searches are checked.

    Raises:
        ConfigError, DataError: the errors that the jobs would raise.
    """
    train.check(searches, ranks, may_generate)
    if may_generate:
        _check_training(recipe, searches[0])


def check_targets(targets: Mapping[str, Path], recipe: Config) -> None:
    """Check the data sets of the evaluation, by name; raise ConfigError or DataError if one cannot be used."""
    for name, folder in targets.items():
        check_target_folder(folder, name, recipe.evaluation.keep_same_camera)


def _check_training(recipe: Config, search: Config) -> None:
    """Raise the errors of training a found network, with the genotype of the untrained supernet."""
    alone = World(0, 1, 0, torch.device("cpu"))
    task = train.build_task(search, alone)[1]
    assert isinstance(task, SearchTask)  # noqa: S101 (the command line has checked it)
    options = {**recipe.model.options, "genotype": str(task.genotype())}
    network = build_model("derived", 1, **options)
    check_input_size(network, recipe.data.height, recipe.data.width)
