"""The placement of ranks on GPUs: if it is wrong, every rank gets an error before NCCL is set up."""

import multiprocessing
import os
import socket
import types

import pytest
import torch
from torch.distributed import HashStore

from autoreid import distributed
from autoreid.cli import run_command
from autoreid.distributed.gpus import Placement, idle_gpus, place_rank, placement_error
from autoreid.distributed.process_group import agree_on_placement
from autoreid.distributed.rendezvous import Rendezvous
from autoreid.errors import ConfigError, RunError
from tests.helpers.ranks import free_port


def show_gpus(*uuids):
    """Make torch see fake GPUs with these UUIDs in this process."""
    current = []
    torch.cuda.is_available = lambda: bool(uuids)
    torch.cuda.device_count = lambda: len(uuids)
    torch.cuda.set_device = current.append

    def properties(index):
        assert current[-1:] == [index], (
            "queried while another GPU was current, on which this would allocate memory"
        )
        return types.SimpleNamespace(uuid=uuids[index])

    torch.cuda.get_device_properties = properties


@pytest.fixture
def gpus(monkeypatch):
    for name in ("is_available", "device_count", "set_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cuda, name))
    return show_gpus


def test_placements(gpus):
    # Slurm makes either one GPU visible to each task, or all GPUs of the node to every task.
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
    "placements",
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
    ids=["CPUs", "two nodes", "each sees its own", "slices of one GPU", "more GPUs than ranks"],
)
def test_consistent_placements(placements):
    assert placement_error(placements) is None


@pytest.mark.parametrize(
    ("placements", "text"),
    [
        (
            [Placement("n1", 0, 1, "a"), Placement("n2", 0, 1, "b"), Placement("n2", 1, 1, "b")],
            "ranks 1, 2 share the GPU b on n2 (ranks: 2, torch sees 1 GPU)",
        ),
        (
            [
                Placement("n1", 0, 2, "a"),
                Placement("n1", 1, 2, "b"),
                Placement("n1", 2, 2),
                Placement("n1", 3, 2),
            ],
            "no GPU left for ranks 2, 3 on n1 (ranks: 4, torch sees 2 GPUs)",
        ),
        (
            [Placement("n1", 0, 1, "a"), Placement("n2", 0), Placement("n2", 1)],
            "torch sees no GPU on ranks 1, 2, but does on the other ranks",
        ),
    ],
)
def test_inconsistent_placements(placements, text):
    found, remedy = placement_error(placements)
    assert found == text
    assert "--ntasks-per-node" in remedy


def test_a_missing_gpu_is_an_error_with_device_cuda(gpus):
    gpus()
    text = r"distributed\.device = cuda: torch sees no GPU on .*; use auto or cpu"
    with pytest.raises(ConfigError, match=text), distributed.setup("cuda"):
        pass
    placements = [Placement("n1", 0, 1, "a"), Placement("n2", 0)]
    assert placement_error(placements, "cuda")[0] == "distributed.device = cuda: torch sees no GPU on n2"


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
        ([["a", "b"]] * 3, "no GPU left for rank 2 on "),
        ([["a"], ["b"], []], "torch sees no GPU on rank 2,"),
    ],
    ids=["shared", "too few", "none on one rank"],
)
def test_every_rank_exits_with_status_2(visible, text):
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


def test_a_missing_rank_is_named(gpus):
    gpus("a")
    with pytest.raises(RunError, match=r"no message from rank 1 within 0\.1 s"):
        agree_on_placement(HashStore(), Rendezvous(0, 2, 0, "127.0.0.1", 1), "auto", 0.1)


def test_gpus_that_no_rank_computes_on_are_named(gpus):
    here = socket.gethostname()
    gpus("a", "b", "c")
    found = idle_gpus([here])
    assert found.startswith(
        f"torch sees 3 GPUs on {here}, but 1 rank computes there; start one rank for each GPU"
    )
    assert "2 ranks compute there" in idle_gpus([here, here, "other", "other"])
    assert idle_gpus([here] * 3) is None
    gpus("a")  # Slurm has given each rank its own
    assert idle_gpus([here] * 3) is None
