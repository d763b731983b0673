"""The message and the exit status of a command for each kind of error."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from autoreid.cli import run_command
from autoreid.errors import ConfigError, DataError, DisagreementError, RunError
from autoreid.reporting.logs import start_logging


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
