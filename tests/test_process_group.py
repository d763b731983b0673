"""Reading rank and address of a process from the variables of each launcher."""

import os
import signal
import socket
import stat

import pytest

from autoreid import distributed
from autoreid.distributed import StopSignal, check_all_started
from autoreid.distributed.contact import contact
from autoreid.distributed.rendezvous import Rendezvous, read_rendezvous
from autoreid.distributed.store import exchange
from autoreid.errors import ConfigError, PeerError, StoppedError
from tests.helpers.ranks import free_port

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A fake scontrol that expands node lists; test_slurm.py uses the real one."""
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[007-008]" ] && printf "gpu007\\ngpu008\\n"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_a_process_without_a_launcher_is_a_single_process():
    assert read_rendezvous({}) is None
    assert read_rendezvous({"MASTER_ADDR": "n1"}) is None
    with distributed.setup("cpu") as world:
        assert (world.rank, world.size, world.is_main, world.device.type) == (0, 1, True, "cpu")


def test_torchrun_takes_precedence_over_slurm(scontrol):
    found = read_rendezvous(SLURM | TORCHRUN)
    assert (found.rank, found.size, found.local_rank, found.address, found.port) == (3, 4, 1, "n1", 29500)


def test_slurm_step(scontrol):
    found = read_rendezvous(SLURM)
    assert (found.rank, found.size, found.local_rank, found.address) == (5, 8, 1, "gpu007")
    assert 20_000 <= found.port < 60_000
    assert found == read_rendezvous(SLURM)
    assert read_rendezvous(SLURM | {"SLURM_STEP_ID": "1"}).port != found.port
    assert read_rendezvous(SLURM | {"MASTER_ADDR": "x", "MASTER_PORT": "7"}).address == "x"


def test_a_process_outside_any_job_step_is_a_single_process():
    assert read_rendezvous({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None


BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    "environment", [BATCH, BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}]
)
def test_one_process_of_the_tasks_that_a_job_has_is_an_error(environment):
    with pytest.raises(ConfigError, match="job 7 has 8 tasks, but srun has not started this process"):
        check_all_started(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM | {"SLURM_NTASKS": "8"},
        BATCH | TORCHRUN,
        BATCH | {"SLURM_NTASKS": "1"},
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "8"},
    ],
)
def test_all_ranks_or_a_job_of_one_task_are_no_error(environment):
    check_all_started(environment)


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.0.1.1", "::1"])
def test_an_address_that_is_another_machine_on_each_node_is_an_error(scontrol, address):
    with pytest.raises(
        ConfigError, match=f"MASTER_ADDR={address} is a different machine on each node; unset it"
    ):
        read_rendezvous(SLURM | {"MASTER_ADDR": address})
    assert read_rendezvous(SLURM | {"MASTER_ADDR": address, "SLURM_STEP_NUM_NODES": "1"}).address == address
    local = TORCHRUN | {"MASTER_ADDR": address}
    assert (
        read_rendezvous(local).address
        == read_rendezvous(local | {"LOCAL_WORLD_SIZE": "4"}).address
        == address
    )
    with pytest.raises(ConfigError, match="different machine"):
        read_rendezvous(local | {"LOCAL_WORLD_SIZE": "2"})


def test_a_shell_in_a_step_of_several_tasks_is_an_error(scontrol, monkeypatch):
    """As `srun -n 8 --pty bash` starts it; only its first task has a terminal."""
    shell = SLURM | {"SLURM_TASK_PID": str(os.getppid())}
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 0)
    with pytest.raises(
        ConfigError, match=r"interactive shell in a job step with 8 tasks.*srun --overlap --ntasks=8"
    ):
        read_rendezvous(shell)
    assert read_rendezvous(SLURM | {"SLURM_TASK_PID": str(os.getpid())}).size == 8
    assert read_rendezvous(shell | {"SLURM_STEP_NUM_TASKS": "1"}).size == 1
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    assert read_rendezvous(shell).size == 8, "a script that srun has started"


@pytest.fixture
def taken():
    """A port that another process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_named_with_the_remedy(taken, monkeypatch):
    place = Rendezvous(0, 2, 0, "127.0.0.1", taken)
    message = (
        f"rank 0 cannot listen at 127.0.0.1, port {taken}: the port is in use; set MASTER_PORT to a free one"
    )
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(PeerError, match=message):  # a restarted job has another port
        contact(place, 1.0)
    monkeypatch.setenv("MASTER_PORT", str(taken))
    with pytest.raises(ConfigError, match=message):
        contact(place, 1.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_stop_signals_set_a_flag(number):
    before = signal.signal(number, signal.SIG_DFL)  # SIGHUP is ignored if nohup has started the tests
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), number)
            assert stop.received == signal.Signals(number).name
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_run_under_nohup_goes_on_without_a_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_signal_ends_the_wait_for_other_ranks():
    stop = StopSignal()
    stop.received = "SIGTERM"
    with pytest.raises(StoppedError, match="stopped by SIGTERM while waiting for rank 0"):
        contact(Rendezvous(1, 2, 0, "127.0.0.1", free_port()), 60.0, stop)
    store, _ = contact(Rendezvous(0, 2, 0, "127.0.0.1", free_port()), 60.0)
    with pytest.raises(StoppedError, match="stopped by SIGTERM while waiting for the other ranks"):
        exchange(store, "name", 0, 2, None, 60.0, stop)


@pytest.mark.parametrize("name", sorted(TORCHRUN))
def test_incomplete_variables_of_torchrun_are_an_error(name):
    if name in ("MASTER_ADDR", "MASTER_PORT"):
        partial = {key: value for key, value in TORCHRUN.items() if key != name}
    else:
        partial = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
        del partial[name]
    with pytest.raises(ConfigError, match=f"variables of torchrun are missing: {name};"):
        read_rendezvous(partial)


def test_incomplete_variables_of_slurm_are_an_error():
    partial = {key: value for key, value in SLURM.items() if key != "SLURM_LOCALID"}
    with pytest.raises(ConfigError, match="variables of srun are missing: SLURM_LOCALID;"):
        read_rendezvous(partial)


def test_not_a_number():
    with pytest.raises(ConfigError, match="RANK='one' is not a whole number"):
        read_rendezvous(TORCHRUN | {"RANK": "one"})


def test_the_error_of_a_failing_scontrol_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="set MASTER_ADDR"):
        read_rendezvous(SLURM)
