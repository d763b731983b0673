"""Parsing the output of Slurm's commands, which are faked here; test_slurm.py uses real ones without accounting."""

from __future__ import annotations

import pytest

from autoreid.errors import ConfigError
from autoreid.slurm.queue import JobState, check_array_size, job_states


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that installs a fake program, which prints a text and records its calls."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def make(name, text, status=0):
        path = tmp_path / name
        (tmp_path / f"{name}.txt").write_text(text)
        path.write_text(f'#!/bin/sh\necho "$@" >> {path}.calls\ncat {path}.txt\nexit {status}\n')
        path.chmod(0o755)
        return lambda: (tmp_path / f"{name}.calls").read_text().splitlines()

    return make


def test_each_command_is_called_once_for_all_jobs(programs):
    queue = programs(
        "squeue", "7|RUNNING|n[1-2]|1-02:03:04\n8_0|PENDING|(Priority)|UNLIMITED\n99|RUNNING|n3|5:00\n"
    )
    accounts = programs("sacct", "9|COMPLETED|n1\n10|CANCELLED by 1000|None assigned\n11_1|NODE_FAIL|n2\n")
    states = job_states({"7", "8_0", "9", "10", "11_1", "12"})
    assert states == {
        "7": JobState("RUNNING", "n[1-2]", "1-02:03:04"),
        "8_0": JobState("PENDING", "(Priority)", "UNLIMITED"),
        "9": JobState("COMPLETED", "n1"),
        "10": JobState("CANCELLED", "None assigned"),
        "11_1": JobState("NODE_FAIL", "n2"),
    }
    assert len(queue()) == len(accounts()) == 1


def test_scontrol_is_used_without_accounting(programs):
    programs("squeue", "")
    programs("sacct", "Slurm accounting storage is disabled\n", status=1)
    calls = programs("scontrol", "JobId=9 JobName=x UserId=a(1) JobState=FAILED Reason=NonZeroExitCode\n")
    assert job_states({"9"}) == {"9": JobState("FAILED")}
    assert calls() == ["--oneliner show job 9"]


def test_sacct_is_not_called_for_jobs_in_the_queue(programs):
    programs("squeue", "7|RUNNING|n1|1:00\n")
    accounts = programs("sacct", "")
    assert job_states({"7"})["7"].state == "RUNNING"
    with pytest.raises(FileNotFoundError):
        accounts()


def test_there_are_no_states_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_states({"7"}) == {}


def test_an_array_that_the_cluster_does_not_allow_is_refused(programs):
    check_array_size(5000)  # without scontrol, sbatch decides
    calls = programs(
        "scontrol", "MailProg                = /bin/mail\nMaxArraySize            = 1001\nMaxDBDMsgs = 1\n"
    )
    check_array_size(1001)
    check_array_size(1)  # no array
    assert calls() == ["show config"]
    with pytest.raises(ConfigError, match=r"array of 1002 tasks is too large .* at most 1001 runs at a time"):
        check_array_size(1002)
    programs("scontrol", "slurm_load_ctl_conf error: Unable to contact slurm controller\n", status=1)
    check_array_size(5000)
