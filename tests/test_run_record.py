"""The history of runs that fail: at whatever point a rank fails, its error is recorded and printed once."""

from __future__ import annotations

import logging

import pytest
import torch

from autoreid import train
from autoreid.cli import run_command
from autoreid.commands import train as work
from autoreid.errors import ConfigError, DataError, PeerError, StoppedError
from autoreid.reporting import run_record
from autoreid.reporting.history import FILE, read_history, record
from autoreid.reporting.run_folder import RunFolder
from autoreid.reporting.run_record import open_run, recorded_end
from tests.helpers.ranks import free_port
from tests.helpers.tiny import tiny_config, write_tiny


def ends(run):
    return [(event.kind, event.reason, event.status) for event in read_history(run)]


def fail_in(monkeypatch, name, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(work, name, fail)


@pytest.mark.parametrize(
    "place",
    ["generate_people", "read_datasets", "build_task", "_resume", "log_memory", "_open_report", "run_epochs"],
)
def test_an_unexpected_error_is_recorded_wherever_it_happens(tmp_path, monkeypatch, place):
    path = write_tiny(tmp_path)
    fail_in(monkeypatch, place, RuntimeError("CUDA error: an illegal memory access\nmore"))
    assert train.main(["--config", str(path)]) == 1
    crashed = ("crashed", "RuntimeError: CUDA error: an illegal memory access", 1)
    assert ends(tmp_path / "runs/tiny") == [("started", "", None), crashed]


def test_an_error_while_the_ranks_contact_each_other_is_recorded(tmp_path, monkeypatch):
    path = write_tiny(tmp_path)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    assert train.main(["--config", str(path), "distributed.timeout_seconds=0.2"]) == 1
    (_, (kind, reason, _)) = ends(tmp_path / "runs/tiny")
    assert (kind, reason) == ("crashed", "no message from rank 1 within 0.2 s; its log may say why")


def test_an_error_that_would_happen_again_is_recorded_with_its_status(tmp_path):
    path = write_tiny(tmp_path)
    assert train.main(["--config", str(path), "data.batch_size=128"]) == 2
    (started, (kind, reason, status)) = ends(tmp_path / "runs/tiny")
    assert started[0] == "started"
    assert (kind, status) == ("failed", 2)
    assert "data.batch_size 128" in reason


def test_data_with_another_number_of_people_are_named(tmp_path):
    path = write_tiny(tmp_path)
    assert train.main(["--config", str(path), "training.epochs=1"]) == 0
    run = tmp_path / "runs/tiny"
    latest = run / "checkpoints/step-00000003.pt"
    state = torch.load(latest)
    people = state["num_identities"]
    torch.save(state | {"num_identities": people + 1}, latest)
    assert train.main(["--config", str(path), "training.epochs=1"]) == 2
    (*_, (kind, reason, status)) = ends(run)
    assert (kind, status) == ("failed", 2)
    assert f"the run was trained on {people + 1} identities, the data have {people}" in reason


def test_a_history_that_cannot_be_written_does_not_stop_the_start(tmp_path, caplog):
    config = tiny_config(tmp_path)
    (tmp_path / "runs/tiny" / FILE).mkdir(parents=True)
    with open_run(config) as folder:
        assert folder.root == tmp_path / "runs/tiny"
    assert "cannot write the history: Is a directory" in caplog.text


def test_a_run_that_is_refused_leaves_the_history_alone(tmp_path, monkeypatch):
    """It belongs to another run."""
    config = tiny_config(tmp_path)
    lock = RunFolder.lock
    monkeypatch.setattr(RunFolder, "lock", lambda folder: lock(folder, wait_seconds=0.0))
    with open_run(config) as folder:
        before = (folder.root / FILE).read_bytes()
        with pytest.raises(ConfigError, match="already running"), open_run(config):
            pass
        assert (folder.root / FILE).read_bytes() == before


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    config = tiny_config(tmp_path)
    (tmp_path / "runs/tiny/lock").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"tiny/lock: cannot open the lock: Is a directory; set output_dir"):
        open_run(config).__enter__()


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (DataError("x.jpg: broken"), "failed", 2),
        (PeerError("rank 0 does not answer"), "crashed", 1),
        (torch.OutOfMemoryError("CUDA out of memory"), "crashed", 1),
    ],
)
def test_another_rank_records_and_prints_an_error_that_rank_0_does_not_have(
    tmp_path, monkeypatch, capsys, error, kind, status
):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(run_record, "REPORT_SECONDS", 0.0)
    record(tmp_path, "failed", reason="an earlier attempt")
    with pytest.raises(type(error)), recorded_end(tmp_path, rank=3):
        raise error
    (_, (recorded, reason, number)) = ends(tmp_path)
    assert (recorded, number) == (kind, status)
    assert reason.startswith("rank 3: ")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("autoreid: rank 3 on ")
    assert str(error) in line


@pytest.mark.parametrize("rank_0_has_it", [False, True])
def test_a_rank_whose_log_cannot_be_opened_says_so_once(tmp_path, monkeypatch, capsys, rank_0_has_it):
    """`run_command` prints errors of ranks without a log, and must not repeat what was recorded."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(logging.getLogger("autoreid"), "handlers", [])
    monkeypatch.setattr(run_record, "REPORT_SECONDS", 0.0)
    config = tiny_config(tmp_path)
    run = tmp_path / "runs/tiny"
    (run / "logs/rank3.log").mkdir(parents=True)
    if rank_0_has_it:
        monkeypatch.setattr(run_record, "_is_reported", lambda *_: True)

    def command() -> int:
        with open_run(config):
            return 0

    assert run_command(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (0 if rank_0_has_it else 1)
    assert all("rank3.log: cannot write the log: Is a directory" in line for line in lines)
    assert [kind for kind, _, _ in ends(run)] == ([] if rank_0_has_it else ["failed"])


def test_rank_0_alone_reports_an_error_of_all_ranks(tmp_path, capsys):
    error = ConfigError("wrong")
    rank = recorded_end(tmp_path, rank=1)
    rank.__enter__()
    record(tmp_path, "failed", reason="wrong", status=2)
    rank.__exit__(ConfigError, error, None)
    assert ends(tmp_path) == [("failed", "wrong", 2)]
    (tmp_path / FILE).unlink()
    error.is_reported = True
    with pytest.raises(ConfigError), recorded_end(tmp_path, rank=1):
        raise error
    assert not ends(tmp_path)
    assert not capsys.readouterr().err


def test_a_signal_during_the_start_is_a_stop_unless_srun_has_sent_it(tmp_path):
    for name in ("SIGTERM", "SIGUSR2"):
        with pytest.raises(StoppedError), recorded_end(tmp_path):
            raise StoppedError(name, "rank 1")
    assert ends(tmp_path) == [("stopped", "SIGUSR2", None)]
    assert StoppedError.exit_status == 0
