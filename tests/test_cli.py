"""The message and the exit status of a command for each kind of error."""

from __future__ import annotations

import io
import logging
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autoreid import evaluate, train
from autoreid.cli import run_command
from autoreid.errors import ConfigError, DataError, DisagreementError, RunError
from autoreid.reporting.history import record
from autoreid.reporting.logs import start_logging
from tests.helpers.commands import ROOT


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("config.yaml: x = 3: wrong"), 2, "config.yaml: x = 3: wrong"),
        (DataError("a.jpg: cannot read"), 2, "a.jpg: cannot read"),
        (RunError("step 3: not finite"), 1, "step 3: not finite"),
        (DisagreementError("step 3: the alphas of rank 1 differ"), 3, "rank 1 differ"),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 1 GiB\nmore"), 1, "a smaller data.batch_size"),
        (torch.distributed.DistBackendError("NCCL timeout"), 1, "lost contact with another rank"),
    ],
)
def test_a_failure_is_one_line_and_a_status(capsys, monkeypatch, error, status, said):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)

    def fail() -> int:
        raise error

    assert run_command(fail) == status
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("autoreid: ")
    assert said in first
    assert not rest or rest[0].startswith("Traceback")


def _fail_with(error: Exception) -> int:
    def fail() -> int:
        raise error

    return run_command(fail)


def test_only_rank_0_speaks_once_the_others_have_a_log(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr(logging.getLogger("autoreid"), "handlers", [])
    assert _fail_with(ConfigError("wrong")) == 2
    assert re.fullmatch(r"autoreid: rank 1 on \S+: wrong\n", capsys.readouterr().err)
    reported = ConfigError("wrong")
    reported.is_reported = True
    assert _fail_with(reported) == 2
    assert not capsys.readouterr().err
    start_logging(tmp_path, 1)
    assert _fail_with(ConfigError("wrong")) == 2
    assert not capsys.readouterr().err
    assert "wrong" in (tmp_path / "rank1.log").read_text()


def test_paths_on_a_command_line_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    """A shell expands `--output ~/x`, but neither `--output=~/x` nor what is quoted."""
    monkeypatch.setenv("HOME", str(tmp_path))
    options = evaluate.parse(["--query=~/q.npz", "--gallery", "$HOME/g.npz", "--output=~/out"])
    assert [options.query, options.gallery, options.output] == [
        tmp_path / name for name in ("q.npz", "g.npz", "out")
    ]
    # The paths of this command are those of a batch script.
    files = [
        path
        for path in (*ROOT.glob("autoreid/**/*.py"), *ROOT.glob("scripts/*.py"))
        if path.name != "resume.py"
    ]
    assert [path.name for path in files if "type=Path" in path.read_text()] == []


_COMMAND = """
import sys
from autoreid.cli import run_command

def command():
    for number in range(100_000):
        print(number)
    return 0

sys.exit(run_command(command))
"""


def test_a_reader_that_goes_ends_the_command_without_a_word():
    command = subprocess.Popen(
        [sys.executable, "-c", _COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert command.stdout.readline() == b"0\n"
    command.stdout.close()
    assert command.wait(60) == 141
    assert command.stderr.read() == b""


def test_a_log_that_nobody_reads_any_more_ends_without_a_word(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank0.log").write_text("2026-01-01 00:00:00 INFO step\n" * 10_000)
    record(tmp_path, "finished")
    line = [sys.executable, ROOT / "jobs/logs.py", tmp_path, "--lines", "10000"]
    command = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout.readline().endswith(b"step\n")
    command.stdout.close()
    assert command.wait(60) == -signal.SIGPIPE
    assert command.stderr.read() == b""


def test_a_broken_pipe_that_is_not_the_output_is_an_error(capsys):
    assert _fail_with(BrokenPipeError("worker")) == 1
    assert "BrokenPipeError: worker" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_help_can_be_printed_in_any_locale(monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    out.flush()
    assert b"losses.classification_weight (0.5): \\u03bb." in out.buffer.getvalue()


def test_a_closed_output_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert run_command(lambda: 0) == 0
    assert not capsys.readouterr().err


def test_an_output_on_a_full_disk_is_an_error(monkeypatch, capsys):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(lambda: print("result") or 0) == 1
    said = capsys.readouterr().err
    assert said == "autoreid: standard output: cannot write: No space left on device\n"
