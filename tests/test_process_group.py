"""Reading rank and address of a process from the variables of each launcher."""

import stat

import pytest

from autoreid import distributed
from autoreid.distributed.rendezvous import read_rendezvous
from autoreid.errors import ConfigError

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
