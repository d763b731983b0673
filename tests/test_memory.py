"""The memory that a step needs, estimated before the first one."""

from __future__ import annotations

import copy
import itertools
import logging
import re
from pathlib import Path

import pytest
import torch

from autoreid import train
from autoreid.cli import LESS_MEMORY
from autoreid.config import Config
from autoreid.distributed import StopSignal
from autoreid.training import memory
from autoreid.training.free_memory import available_memory, free_bytes
from autoreid.training.memory import MemoryNeed, log_memory, measure_need
from tests.helpers.image_folder import ALONE
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import assert_equal
from tests.helpers.tasks import build_search_task, build_training_task, search_task_of
from tests.helpers.tiny import MSINET, OSNET, OSNET_HARD, OSNET_TRAINING, tiny_config, write_tiny
from tests.helpers.trained import OPTIONS

pytestmark = pytest.mark.slow

#: As in configs/quickstart.yaml.
QUICKSTART = {
    "search__reid_cell__stem": "resnet",
    "search__reid_cell__channels": 12,
    "search__reid_cell__nodes": 4,
    "data__height": 96,
    "data__width": 48,
}
TRAIN = OSNET_TRAINING
SHAPES = {
    "quickstart": QUICKSTART,
    "second order": {"search__order": "second"},
    "exact": {"search__order": "exact", "search__relaxation": "gumbel"},
    "partial channels, recomputed cells": QUICKSTART
    | {"search__reid_cell__partial_channels": 4, "search__activation_checkpointing": "cell"},
    "bfloat16, micro-batches": QUICKSTART | {"training__precision": "bfloat16", "training__accumulation": 2},
    "osnet_ain": OSNET,
    "osnet_ain hard": OSNET_HARD,
    "osnet_ain recomputed": OSNET | {"search__activation_checkpointing": "cell"},
    "msinet": MSINET,
    "pcb, amsgrad, average": TRAIN
    | {"model": {"name": "pcb"}, "training__optimizer": "amsgrad", "training__ema_decay": 0.9},
}


def build(folder, changes):
    return (build_training_task if changes.get("task") == "train" else build_search_task)(folder, **changes)


def allocated(action) -> int:
    """The peak memory of an action, in bytes, as torch's profiler records it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        action()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes))


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_the_estimate_is_the_peak_of_a_real_step(tmp_path, changes):
    task = build(tmp_path, changes)
    config = task.config
    need = measure_need(task, config, ALONE)
    task.step(StopSignal())  # creates the optimiser's state
    state = task.state
    state.weight_optimizer.zero_grad()  # the profiler would miss that these gradients are freed, and not count them
    lasting = [*state.network.state_dict().values()] * (2 if getattr(state, "ema", None) else 1)
    for kept in state.weight_optimizer.state.values():
        lasting += kept.values()
    taken = sum(tensor.nbytes for tensor in lasting) + allocated(lambda: task.step(StopSignal()))
    assert need.of(config.data.batch_size) == pytest.approx(taken, rel=0.1)


def needs(folder, changes):
    task = build(folder, changes)
    return measure_need(task, task.config, ALONE)


def test_the_estimate_reflects_settings_that_save_memory(tmp_path):
    plain = needs(tmp_path, QUICKSTART)
    recomputed = needs(tmp_path, QUICKSTART | {"search__activation_checkpointing": "cell"})
    half = needs(tmp_path, QUICKSTART | {"training__precision": "bfloat16"})
    accumulated = needs(tmp_path, QUICKSTART | {"training__accumulation": 2})
    assert recomputed.per_image < 0.8 * plain.per_image
    assert half.per_image < 0.8 * plain.per_image
    pixels = 4 * 3 * 96 * 48
    # In memory: the images of both batches (weights and alphas), and a copy of those of one micro-batch.
    expected = (plain.per_image - 2 * pixels) / 2 + 2.5 * pixels
    assert accumulated.per_image == pytest.approx(expected, rel=0.01)
    # The gradient of a micro-batch is computed while the sum of the previous ones is in memory.
    weights = sum(weight.nbytes for weight in build(tmp_path, QUICKSTART).state.network.parameters())
    assert accumulated.fixed == pytest.approx(plain.fixed + weights, rel=0.1)


def _fingerprint(task):
    state = copy.deepcopy({**task.state.state_dict(), "seconds": 0})
    grads = [tensor.grad for tensor in task.state.network.parameters()]
    return [state, grads, [module.training for module in task.state.network.modules()]]


@pytest.mark.parametrize(
    "changes",
    [
        {"search__order": "second"},
        {"search__order": "exact", "search__activation_checkpointing": "cell"},
        OSNET,
        OSNET_HARD,
        TRAIN | {"model": {"name": "derived", "options": OPTIONS | {"parts": 2, "drop_path": 0.5}}},
    ],
    ids=["second", "exact", "osnet_ain", "osnet_ain hard", "derived with dropped paths"],
)
def test_the_estimate_changes_no_state_and_no_later_step(tmp_path, changes):
    ends = []
    for measured in (False, True):
        task = build(tmp_path, changes)
        before = _fingerprint(task)
        if measured:
            log_memory(task, task.config, ALONE)
            assert_equal(_fingerprint(task), before)
        for _ in range(2):
            task.step(StopSignal())
        if measured:
            log_memory(task, task.config, ALONE)
        task.step(StopSignal())
        ends.append([*task.state.network.state_dict().values(), torch.get_rng_state()])
        if hasattr(task.state, "alphas"):
            ends[-1] += [*task.state.alphas.parameters()]
    for plain, measured in zip(*ends, strict=True):
        assert torch.equal(plain, measured)


def _search(world, path):
    """The digests of two searches, without and with an estimate before the first step, and that estimate."""
    digests = []
    for measured in (False, True):
        task = search_task_of(path, world)
        if measured:
            log_memory(task, task.config, world)
            need = measure_need(task, task.config, world)
        task.step(StopSignal())
        task.step(StopSignal())
        digests.append(task.state.alphas.digest())
    return digests, need


def test_ranks_estimate_together_and_search_as_without_it(tmp_path):
    changes = {"search__order": "second"}
    tiny_config(tmp_path, **changes)
    path = write_tiny(tmp_path, **changes)
    ((_, alone),) = run_ranks(_search, 1, path)
    for (plain, measured), need in run_ranks(_search, 2, path):
        assert measured == plain
        assert need.per_image == pytest.approx(alone.per_image, rel=0.05), (
            "shared statistics need no further memory"
        )


def test_the_largest_number_of_images_that_fits():
    need = MemoryNeed(fixed=1000.0, per_image=7.0)
    for free in (0, 1000, 1055, 1056, 1111, 1112, 99_999):
        images = need.images_in(free, 8)
        assert images % 8 == 0
        assert not images or need.of(images) <= free
        assert need.of(images + 8) > free


@pytest.mark.parametrize("fits", [True, False])
def test_the_estimate_is_logged_in_one_line_with_a_warning_if_it_does_not_fit(
    tmp_path, monkeypatch, caplog, fits
):
    task = build_search_task(tmp_path, training__accumulation=2)
    need = MemoryNeed(fixed=0.4e9, per_image=39.5e6)
    monkeypatch.setattr(memory, "measure_need", lambda *_: need)
    monkeypatch.setattr(memory, "free_bytes", lambda *_, **__: 10.6e9 if fits else 1e9)
    with caplog.at_level(logging.INFO):
        log_memory(task, task.config, ALONE)
    line, *warnings = [record.getMessage() for record in caplog.records]
    assert line == (
        "memory: 40 MB per image and 400 MB for weights and gradients; this rank's 16 images (in 2 micro-batches) "
        f"need about 1.0 GB of {'10.6' if fits else '1.0'} GB free; up to {256 if fits else 8} images fit"
    )
    assert warnings == ([] if fits else [f"memory: a step will probably not fit; {LESS_MEMORY}"])


def test_the_settings_that_the_warning_names_exist():
    keys = re.findall(r"(\w+)\.(\w+)", LESS_MEMORY)
    assert {("training", "accumulation"), ("data", "batch_size")} <= set(keys)
    for section, key in keys:
        assert key in Config.model_fields[section].annotation.model_fields


def test_a_run_logs_the_estimate_before_its_first_step(tmp_path):
    path = write_tiny(tmp_path, training__epochs=1)
    assert train.main(["--config", str(path)]) == 0
    lines = (tmp_path / "runs/tiny/logs/rank0.log").read_text().splitlines()
    (place,) = [
        number for number, line in enumerate(lines) if "this rank's 16 images (in 1 micro-batch) need" in line
    ]
    assert "global batch of 16 images" in lines[place - 1]


MEMINFO = "MemTotal: 64000 kB\nMemFree: 100 kB\nMemAvailable: 50000 kB\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {}, 50_000 * 1024),
        ("0::/job/step\n", {"job/memory.max": "max"}, 50_000 * 1024),
        (
            "0::/job/step\n",
            {
                "job/memory.max": "9000",
                "job/memory.current": "5000",
                "job/memory.stat": "anon 1\ninactive_file 700\n",
            },
            4700,
        ),
        (
            "4:cpu:/job\n3:memory:/job/step\n",
            {
                "memory/job/step/memory.limit_in_bytes": "8000",
                "memory/job/step/memory.usage_in_bytes": "6000",
                "memory/job/step/memory.stat": "cache 9\ntotal_inactive_file 500\n",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "7000",
                "memory/memory.stat": "total_inactive_file 0\n",
            },
            2500,
        ),
        (
            "0::/\n",
            {"memory.max": "100", "memory.current": "170", "memory.stat": "inactive_file 0\n"},
            0,
        ),
    ],
    ids=["no cgroup", "no limit", "Slurm's, version 2", "version 1", "limit exceeded"],
)
def test_available_memory_within_the_limits_of_cgroups(tmp_path, cgroup, files, expected):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self/cgroup").write_text(cgroup)
    for name, text in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text.strip() + "\n")
    assert available_memory(proc, cgroups) == expected


def test_available_memory_of_this_machine():
    total = int(re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())[1])
    assert 0 < available_memory() <= 1024 * total
    assert free_bytes(ALONE, held=5) > 5
