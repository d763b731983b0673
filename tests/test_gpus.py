"""Ranks that do not find a GPU each: every one of them must hear of it, before NCCL."""

import multiprocessing
import os
import types

import pytest
import torch
from torch.distributed import HashStore

from autoreid import distributed
from autoreid.cli import run_command
from autoreid.distributed.gpus import Placement, placement_error, place_rank
from autoreid.distributed.process_group import Rendezvous, agree_on_placement
from autoreid.errors import ConfigError, RunError
from tests.helpers.ranks import free_port


def show_gpus(*uuids):
    """Makes torch see these GPUs in this process, which has none."""
    current = []
    torch.cuda.is_available = lambda: bool(uuids)
    torch.cuda.device_count = lambda: len(uuids)
    torch.cuda.set_device = current.append

    def properties(index):
        assert current[-1:] == [index], "another GPU was current, which would hold memory for this process"
        return types.SimpleNamespace(uuid=uuids[index])

    torch.cuda.get_device_properties = properties


@pytest.fixture
def gpus(monkeypatch):
    for name in ("is_available", "device_count", "set_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cuda, name))
    return show_gpus


def test_seats(gpus):
    # Slurm shows a task its own GPU alone, or every task all GPUs of the node.
    gpus("a")
    assert place_rank("auto", 3)[1:] == (3, 1, "a")
    assert place_rank("auto", 3).device == torch.device("cuda", 0)
    gpus("a", "b")
    assert place_rank("cuda", 1)[1:] == (1, 2, "b")
    assert place_rank("cuda", 1).device == torch.device("cuda", 1)
    assert place_rank("cuda", 2)[1:] == (2, 2, None)
    assert place_rank("cpu", 1).device == torch.device("cpu")
    gpus()
    assert place_rank("cuda", 1)[1:] == (1, 0, None)
    assert place_rank("auto", 1).device == torch.device("cpu")


@pytest.mark.parametrize(
    "seats",
    [
        [Placement("n1", 0), Placement("n2", 0)],
        [
            Placement("n1", 0, 2, "a"),
            Placement("n1", 1, 2, "b"),
            Placement("n2", 0, 2, "c"),
            Placement("n2", 1, 2, "d"),
        ],
        [Placement("n1", 0, 1, "a"), Placement("n1", 1, 1, "b")],
        [Placement("n1", 0, 1, "MIG-a"), Placement("n1", 1, 1, "MIG-b")],
        [Placement("n1", 0, 8, "a"), Placement("n1", 1, 8, "b")],
    ],
    ids=["CPUs", "two nodes", "each sees its own", "slices of one GPU", "more GPUs than tasks"],
)
def test_seats_that_fit(seats):
    assert placement_error(seats) is None


@pytest.mark.parametrize(
    ("seats", "text"),
    [
        (
            [Placement("n1", 0, 1, "a"), Placement("n2", 0, 1, "b"), Placement("n2", 1, 1, "b")],
            "ranks 1, 2 share the GPU b on n2, where 2 tasks run and torch sees 1 GPU",
        ),
        (
            [
                Placement("n1", 0, 2, "a"),
                Placement("n1", 1, 2, "b"),
                Placement("n1", 2, 2),
                Placement("n1", 3, 2),
            ],
            "ranks 2, 3 find no GPU left on n1, where 4 tasks run and torch sees 2 GPUs",
        ),
        (
            [Placement("n1", 0, 1, "a"), Placement("n2", 0), Placement("n2", 1)],
            "ranks 1, 2 compute on the CPU, the others on GPUs",
        ),
    ],
)
def test_seats_that_do_not_fit(seats, text):
    found, mend = placement_error(seats)
    assert found == text
    assert "--ntasks-per-node" in mend


def test_no_gpu_where_one_is_asked_for(gpus):
    gpus()
    text = r"distributed\.device = cuda: torch sees no GPU on .*; use auto or cpu"
    with pytest.raises(ConfigError, match=text), distributed.setup("cuda"):
        pass
    seats = [Placement("n1", 0, 1, "a"), Placement("n2", 0)]
    assert placement_error(seats, "cuda")[0] == "distributed.device = cuda: torch sees no GPU on n2"


def _start(rank, port, uuids, results):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    show_gpus(*uuids)
    message = ""

    def command():
        nonlocal message
        try:
            with distributed.setup("auto", 60.0):
                return 0
        except ConfigError as error:
            message = str(error)
            raise

    results.put((rank, run_command(command), message))


@pytest.mark.parametrize(
    ("visible", "text"),
    [
        ([["a"], ["a"], ["b"]], "ranks 0, 1 share the GPU a"),
        ([["a", "b"]] * 3, "ranks 2 find no GPU left"),
        ([["a"], ["b"], []], "ranks 2 compute on the CPU"),
    ],
    ids=["shared", "too few", "none on one rank"],
)
def test_every_rank_leaves_with_status_2(visible, text):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "autoreid.train"])
    results, port = context.SimpleQueue(), free_port()
    ranks = [
        context.Process(target=_start, args=(rank, port, uuids, results))
        for rank, uuids in enumerate(visible)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60.0)
        assert process.exitcode == 0
    found = sorted(results.get() for _ in ranks)
    assert [status for _, status, _ in found] == [2, 2, 2]
    assert len({message for _, _, message in found}) == 1
    assert found[0][2].startswith(text)


def test_a_rank_that_does_not_come(gpus):
    gpus("a")
    with pytest.raises(RunError, match="nothing heard of rank 1"):
        agree_on_placement(HashStore(), Rendezvous(0, 2, 0, "127.0.0.1", 1), "auto", 0.1)
