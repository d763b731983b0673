"""Which jobs are requeued, and when requeueing ends."""

from __future__ import annotations

import json

import pytest

from autoreid.reporting.history import FILE, Event, read_history, record, starts_without_progress
from autoreid.slurm import resume
from autoreid.slurm.resume import exit_status, reason_not_to_requeue, reason_to_requeue


def events(*kinds, restart=0, job="7"):
    return [Event(kind, 0.0, "n1", job, restart, step, reason) for kind, step, reason in kinds]


STARTED = ("started", 5, "")


@pytest.mark.parametrize(
    ("end", "status", "requeued"),
    [
        (("stopped", 8, "SIGUSR2"), 0, True),
        (("stopped", 8, "SIGTERM"), 0, False),  # requeued by Slurm itself, or cancelled
        (("finished", 9, ""), 0, False),
        (("failed", 6, "step 6: the gradient is not finite"), 1, False),
        (None, 137, True),  # a Slurm task was killed
        (None, 1, True),  # all ranks lost contact with a killed one
        (None, 2, False),  # error in config or data
        (None, 3, False),  # ranks disagree
        (None, 0, False),
    ],
)
def test_which_jobs_are_requeued(end, status, requeued):
    history = events(STARTED, *([end] if end else []))
    assert (reason_to_requeue(history, "7", 0, status) is not None) == requeued


def test_a_signal_to_exiting_processes_of_a_finished_run_does_not_fail_the_job():
    finished = events(STARTED, ("finished", 9, ""))
    assert reason_to_requeue(finished, "7", 0, 138) is None
    assert exit_status(finished, "7", 0, 138) == 0
    assert exit_status(events(STARTED, ("failed", 6, "x")), "7", 0, 1) == 1
    assert exit_status(finished, "7", 1, 1) == 1, "an earlier start that finished does not count"
    assert exit_status([], "7", 0, 2) == 2


def test_only_the_current_start_of_the_job_counts():
    before = events(STARTED, ("stopped", 8, "SIGUSR2"), restart=0)
    now = events(("started", 8, ""), restart=1)
    assert "137" in reason_to_requeue(before + now, "7", 1, 137)
    assert reason_to_requeue(before + now, "7", 1, 0) is None
    other_job = events(STARTED, ("failed", 6, "x"), job="6")
    assert reason_to_requeue(other_job + events(STARTED), "7", 0, 137) is not None


def test_a_job_killed_before_its_run_started_is_requeued():
    assert reason_to_requeue([], "7", 3, 137) is not None


def test_a_job_is_not_requeued_after_three_starts_from_the_same_step():
    two = events(STARTED, STARTED)
    assert reason_not_to_requeue(two, 1, 100) is None
    assert "beyond step 5" in reason_not_to_requeue([*two, *events(STARTED)], 2, 100)
    assert reason_not_to_requeue([*two, *events(STARTED, ("stopped", 6, "SIGUSR2"))], 2, 100) is None
    assert "beyond step 5" in reason_not_to_requeue(
        [*two, *events(STARTED, ("stopped", 5, "SIGUSR2"))], 2, 100
    )
    assert starts_without_progress(events(("started", 4, ""), STARTED, STARTED)) == 2
    assert starts_without_progress([]) == 0


def test_the_number_of_restarts_is_limited():
    progress = events(*[("started", step, "") for step in range(9)])
    assert reason_not_to_requeue(progress, 8, 9) is None
    assert "restarted 9 times" in reason_not_to_requeue(progress, 9, 9)


def test_truncated_and_invalid_lines_are_skipped(tmp_path):
    record(tmp_path, "started", 3)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind": "stop\n' + json.dumps({"kind": "danced", "seconds": 0, "host": "x"}) + "\n[]\n")
    record(tmp_path, "stopped", 4, "SIGTERM")
    assert [event.kind for event in read_history(tmp_path)] == ["started", "stopped"]
    assert read_history(tmp_path / "nowhere") == []


def test_the_command_requeues_the_job_once_and_prints_why(tmp_path, monkeypatch, capsys):
    """A fake scontrol records its arguments; test_slurm.py uses the real one."""
    calls = tmp_path / "calls"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    record(tmp_path, "started", 3)
    record(tmp_path, "stopped", 4, "SIGUSR2")
    assert resume.main(["--run", str(tmp_path), "--status", "0"]) == 0
    assert calls.read_text() == "requeue 8_1\n"
    assert read_history(tmp_path)[-1].kind == "requeued"
    assert "stopped by SIGUSR2" in capsys.readouterr().err
    assert resume.main(["--run", str(tmp_path), "--status", "0", "--max-restarts", "0"]) == 0
    assert resume.main(["--run", str(tmp_path), "--status", "2"]) == 2
    assert calls.read_text() == "requeue 8_1\n"
