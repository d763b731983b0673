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
        (("stopped", 8, "SIGUSR1"), 0, True),
        (("failed", None, "step 6: the gradient is not finite"), 1, False),
        (("failed", None, "rank 1: x.jpg: broken"), 137, False),  # srun has killed the other ranks
        (("crashed", None, "RuntimeError: CUDA error"), 1, True),
        (("crashed", None, "rank 1 failed"), 2, False),
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


def test_the_error_of_one_rank_counts_whatever_the_others_record_afterwards():
    failed = Event("failed", 0.0, "n2", "7", 0, None, "rank 1: x.jpg: broken", 2)
    history = [*events(STARTED), failed, *events(("crashed", None, "lost contact"))]
    assert reason_to_requeue(history, "7", 0, 137) is None
    assert exit_status(history, "7", 0, 137) == 2


def test_a_job_killed_before_its_run_started_is_requeued():
    assert reason_to_requeue([], "7", 3, 137) is not None


def starts(*steps, job="7"):
    """Return the history of a job that was started once from each step."""
    return [
        event
        for restart, step in enumerate(steps)
        for event in events(("started", step, ""), restart=restart, job=job)
    ]


def test_a_job_is_not_requeued_after_three_starts_from_the_same_step():
    two, three = starts(5, 5), starts(5, 5, 5)
    assert reason_not_to_requeue(two, "7", 1, 100) is None
    assert "beyond step 5 in the last 3 starts" in reason_not_to_requeue(three, "7", 2, 100)
    progress = [*three, *events(("stopped", 6, "SIGUSR2"), restart=2)]
    assert reason_not_to_requeue(progress, "7", 2, 100) is None
    none = [*three, *events(("stopped", 5, "SIGUSR2"), restart=2)]
    assert "beyond step 5" in reason_not_to_requeue(none, "7", 2, 100)
    assert starts_without_progress(starts(4, 5, 5), "7", 2) == 2
    assert starts_without_progress(starts(20, 10), "7", 1) == 1, "a damaged checkpoint is replaced"


def test_starts_of_which_nothing_is_recorded_count():
    """srun or a node failed before any process ran; Slurm's number of restarts says how often."""
    assert [starts_without_progress([], "7", restart) for restart in range(3)] == [1, 2, 3]
    assert reason_not_to_requeue([], "7", 1, 100) is None
    assert "beyond step 0 in the last 3 starts" in reason_not_to_requeue([], "7", 2, 100)
    progress = starts(0, 40)
    assert [starts_without_progress(progress, "7", restart) for restart in (1, 2, 3)] == [1, 2, 3]
    assert starts_without_progress(progress, "8", 0) == 1, "the job was submitted again"


def test_the_number_of_restarts_is_limited():
    progress = starts(*range(9))
    assert reason_not_to_requeue(progress, "7", 8, 9) is None
    assert "restarted 9 times" in reason_not_to_requeue(progress, "7", 9, 9)


def test_truncated_and_invalid_lines_are_skipped(tmp_path):
    record(tmp_path, "started", 3)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind": "stop\n' + json.dumps({"kind": "danced", "seconds": 0, "host": "x"}) + "\n[]\n")
    record(tmp_path, "stopped", 4, "SIGTERM")
    assert [event.kind for event in read_history(tmp_path)] == ["started", "stopped"]
    assert read_history(tmp_path / "nowhere") == []


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A fake scontrol that records its arguments in the returned file; test_slurm.py uses the real one."""
    calls = tmp_path / "calls"
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    return calls


def test_the_command_requeues_the_job_once_and_prints_why(scontrol, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    record(tmp_path, "started", 3)
    record(tmp_path, "stopped", 4, "SIGUSR2")
    assert resume.main(["--run", str(tmp_path), "--status", "0"]) == 0
    assert scontrol.read_text() == "requeue 8_1\n"
    assert read_history(tmp_path)[-1].kind == "requeued"
    assert "stopped by SIGUSR2" in capsys.readouterr().err
    assert resume.main(["--run", str(tmp_path), "--status", "0", "--max-restarts", "0"]) == 0
    assert resume.main(["--run", str(tmp_path), "--status", "2"]) == 2
    assert scontrol.read_text() == "requeue 8_1\n"


def test_a_job_is_requeued_though_its_history_cannot_be_written_yet(scontrol, tmp_path, capsys):
    run = tmp_path / "runs" / "new"
    assert resume.main(["--run", str(run), "--status", "1"]) == 1
    assert [event.kind for event in read_history(run)] == ["requeued"]
    (tmp_path / "file").write_text("")
    assert resume.main(["--run", str(tmp_path / "file" / "run"), "--status", "1"]) == 1
    assert scontrol.read_text() == "requeue 9\n" * 2
    assert "Not a directory" in capsys.readouterr().err


def test_the_third_start_that_gets_nowhere_is_the_last(scontrol, tmp_path, monkeypatch, capsys):
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        assert resume.main(["--run", str(tmp_path / "run"), "--status", "137"]) == 137
    assert scontrol.read_text() == "requeue 9\n" * 2
    assert "job not requeued: no progress beyond step 0 in the last 3 starts" in capsys.readouterr().err
