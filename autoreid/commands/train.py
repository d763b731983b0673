"""Run the search or training of a config, as a single process or as one of many ranks."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch

from autoreid import distributed
from autoreid.checkpoint import CheckpointFolder
from autoreid.config import MAY_DIFFER, Config
from autoreid.data.images import Images
from autoreid.data.records import ReidDataset
from autoreid.data.training_data import (
    TrainingData,
    build_search_data,
    build_training_data,
    generate_people,
    read_datasets,
    run_images,
)
from autoreid.data.used_images import check_used_images
from autoreid.distributed import (
    StopSignal,
    World,
    check_all_started,
    explain_nondeterminism,
    gather_objects,
    idle_gpus,
    on_main,
)
from autoreid.errors import DataError, named
from autoreid.reporting.history import Kind, record
from autoreid.reporting.run_folder import RunFolder
from autoreid.reporting.run_record import open_run
from autoreid.reporting.run_report import NullReport, RunReport
from autoreid.reporting.search_report import SearchReport
from autoreid.reporting.train_report import TrainReport
from autoreid.search.build import build_search
from autoreid.search.task import SearchTask
from autoreid.training.loop import run_epochs
from autoreid.training.memory import log_memory
from autoreid.training.state import RunState
from autoreid.training.task import TrainTask, build_training

_log = logging.getLogger(__name__)


def execute(config: Config) -> None:
    """Run the task of a config in its run folder, as the rank that the environment names."""
    check_all_started(os.environ)
    # First: a job may be stopped, or fail, during its preparation.
    with (
        StopSignal() as stop,
        open_run(config, MAY_DIFFER) as folder,
        distributed.setup_for(config.distributed, stop) as world,
    ):
        run(config, world, folder, stop)


def build_task(
    config: Config,
    world: World,
    images: Images | None = None,
    datasets: Mapping[str, ReidDataset] | None = None,
) -> tuple[TrainingData, SearchTask | TrainTask]:
    """Build the data and the task (search or training) of a config.

    Args:
        images: decoder or cache of the images; None if no image is to be read yet.
        datasets: the data sets of the run; None to read them.

    Raises:
        ConfigError, DataError: config and data do not fit together.
    """
    if config.task == "search":
        search_data = build_search_data(config, world, images, datasets)
        return search_data, build_search(config, search_data, world)
    data = build_training_data(config, world, images, datasets)
    return data, build_training(config, data, world)


def check(
    configs: Sequence[Config], ranks: int, may_generate: bool, names: Sequence[str] | None = None
) -> None:
    """Check data, network and batch size of runs as their ranks would at the start.

    Args:
        ranks: number of ranks of a run.
        may_generate: whether missing synthetic data sets may be generated; if not, the data are not checked.
        names: what errors call the runs; None if there is nothing to add to the messages.

    Raises:
        ConfigError, DataError: the errors that the ranks would raise.
    """
    unchecked: list[str] = []
    for number, config in enumerate(configs):
        with named(names[number]) if names else nullcontext():
            if may_generate:
                generate_people(config.data)
            missing = [name for name in config.data.synthetic if not (config.data.root / name).exists()]
            unchecked += missing
            if not missing:
                build_task(config, World(0, ranks, 0, torch.device("cpu")))
    if unchecked:
        names_of_sets = ", ".join(dict.fromkeys(unchecked))
        print(
            f"data not checked: {names_of_sets} (synthetic) will be generated on submission", file=sys.stderr
        )


def run(config: Config, world: World, folder: RunFolder, stop: StopSignal) -> None:
    """Run the task of a config, from its last checkpoint if there is one.

    Args:
        folder: the run folder, which `open_run` has opened.
    """
    on_main(lambda: generate_people(config.data))
    datasets = on_main(lambda: read_datasets(config))
    data, task = build_task(config, world, run_images(config, world, datasets), datasets)
    with explain_nondeterminism():
        _run_task(config, world, data, task, folder, stop)


def _run_task(
    config: Config,
    world: World,
    data: TrainingData,
    task: SearchTask | TrainTask,
    folder: RunFolder,
    stop: StopSignal,
) -> None:
    checkpoints = CheckpointFolder(folder.checkpoints, config.checkpoint.keep_last)
    state = task.state
    _log.info("run folder: %s", folder.root)
    _resume(state, checkpoints, data, folder)
    if state.finished and folder.result.exists():
        _log.info("this run has already finished; result: %s", folder.result)
        _record(folder, world, "finished", state)
        return
    _log_start(config, world, data, state)
    if isinstance(task, TrainTask) and task.start is not None and not state.step:
        _log.info("%s", task.start)
    log_memory(task, config, world)
    on_main(lambda: data.used.save(folder.used_images))
    digest = data.used.digest()

    def save(is_best: bool) -> None:
        content = {
            "state": state.state_dict(),
            "config": config.to_yaml(),
            "num_identities": data.num_identities,
            "used_images": digest,
        }
        on_main(lambda: checkpoints.save(state.step, content, is_best))

    with _open_report(config, folder, task, world) as report:
        if run_epochs(task, config, save, report, stop):
            report.finish()
            _record(folder, world, "finished", state)
        else:
            signals = sorted({name for name in gather_objects(stop.received) if name})
            _record(folder, world, "stopped", state, signals[-1])
            _log.info(
                "stopped by %s and saved at step %d; run the same command again to resume",
                " and ".join(signals),
                state.step,
            )


def _log_start(config: Config, world: World, data: TrainingData, state: RunState) -> None:
    """Log the task, the data, the device and the batches of a run."""
    task = (
        f"search in {config.search.space}" if config.task == "search" else f"training of {config.model.name}"
    )
    _log.info("%s: %d epochs of %d steps", task, config.training.epochs, state.steps_per_epoch)
    if state.step:
        _log.info("resuming after step %d, in epoch %d", state.step, state.epoch + 1)
    _log.info("data: %s", data.summary)
    for note in data.notes:
        _log.warning("%s", note)
    on_gpu = world.device.type == "cuda"
    _log.info("device: %s", torch.cuda.get_device_name(world.device) if on_gpu else "CPU")
    idle = idle_gpus(gather_objects(socket.gethostname())) if on_gpu else None
    if idle is not None:
        _log.warning("%s", idle)
    batch = config.data.batch_size
    ranks = "all on 1 rank" if world.size == 1 else f"{batch // world.size} on each of {world.size} ranks"
    _log.info("global batch of %d images, %s", batch, ranks)


def _record(folder: RunFolder, world: World, kind: Kind, state: RunState, reason: str = "") -> None:
    if world.is_main:
        record(folder.root, kind, state.step, reason)


def _resume(state: RunState, checkpoints: CheckpointFolder, data: TrainingData, folder: RunFolder) -> None:
    saved = checkpoints.load_latest()
    if saved is None:
        return
    check_used_images(saved.get("used_images"), data.used, folder.used_images)
    if saved["num_identities"] != data.num_identities:  # checkpoints of older versions list no images
        raise DataError(
            f"{checkpoints.folder}: the run was trained on {saved['num_identities']} identities, the data have "
            f"{data.num_identities}; restore the data, or set another task_name"
        )
    state.load_state_dict(saved["state"])
    state.restarts += 1


def _open_report(
    config: Config, folder: RunFolder, task: SearchTask | TrainTask, world: World
) -> RunReport | NullReport:
    """Return the report of rank 0, and on other ranks one that does nothing."""
    if not world.is_main:
        return NullReport()
    if isinstance(task, SearchTask):
        return SearchReport(config, folder, task)
    return TrainReport(config, folder, task)
