"""An error of NCCL's watchdog ends the process with one line, even if the main thread waits for the GPU."""

import signal
import threading
import types

import pytest
import torch

from autoreid.distributed import lost_peer
from tests.helpers.commands import run_python_on_two_ranks

WAITS = """
import logging, sys, threading, time, types
from autoreid.distributed import lost_peer

logging.basicConfig(filename=sys.argv[1], level=logging.DEBUG)
found = iter(["SUCCESS", "SUCCESS", "TIMEOUT"])
backend = types.SimpleNamespace(get_error=lambda: types.SimpleNamespace(name=next(found)))
threading.Thread(target=lost_peer.watch, args=(backend, threading.Event()), daemon=True).start()

def wait_for_a_kernel():
    time.sleep(120)

wait_for_a_kernel()
"""


def test_one_line_and_status_1_while_the_main_thread_waits(tmp_path):
    first, second = run_python_on_two_ranks("-c", WAITS, tmp_path / "log")
    assert (first.returncode, second.returncode) == (1, 1)
    assert first.stderr.startswith("autoreid: lost contact with another rank, see its log for the reason: ")
    assert "TIMEOUT" in first.stderr
    assert len(first.stderr.splitlines()) == 1
    assert second.stderr == ""
    # The log has the stack of the main thread.
    assert "wait_for_a_kernel" in (tmp_path / "log").read_text()


def test_polling_ends_with_the_block(monkeypatch):
    monkeypatch.setattr(lost_peer, "INTERVAL", 0.001)
    polled = threading.Event()

    def get_error():
        polled.set()
        return types.SimpleNamespace(name="SUCCESS")

    done = threading.Event()
    watcher = threading.Thread(
        target=lost_peer.watch, args=(types.SimpleNamespace(get_error=get_error), done)
    )
    watcher.start()
    assert polled.wait(10.0)
    done.set()
    watcher.join(10.0)
    assert not watcher.is_alive()


@pytest.mark.skipif(not torch.distributed.is_nccl_available(), reason="torch was built without NCCL")
def test_the_watchdog_can_be_polled_since_torch_2_7():
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert hasattr(torch.distributed.ProcessGroupNCCL, "get_error") == (version >= (2, 7))


DIES = """
import os, signal, sys
import torch
from autoreid import distributed
from autoreid.cli import run_command

def command():
    with distributed.setup("cuda", 20.0) as world:
        total = torch.ones(1 << 20, device=world.device)
        torch.distributed.all_reduce(total)
        total.sum().item()
        if not world.is_main:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.all_reduce(total)
        total.sum().item()
    return 0

sys.exit(run_command(command))
"""


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees fewer than two CUDA devices")
def test_a_killed_peer():
    survivor, killed = run_python_on_two_ranks("-c", DIES)
    assert (survivor.returncode, killed.returncode) == (1, -signal.SIGKILL)
    assert "autoreid: " in survivor.stderr
    assert "lost contact with another rank" in survivor.stderr
