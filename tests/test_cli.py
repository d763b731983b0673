"""The message and the exit status of a command for each kind of error."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from autoreid import train
from autoreid.cli import run_command
from autoreid.errors import ConfigError, DataError, DisagreementError, RunError


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


def test_only_rank_0_speaks(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")

    def fail() -> int:
        raise ConfigError("wrong")

    assert run_command(fail) == 2
    assert not capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_help_can_be_printed_in_any_locale(monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    out.flush()
    assert b"losses.classification_weight (0.5): \\u03bb." in out.buffer.getvalue()
