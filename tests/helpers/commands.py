"""The commands of jobs/, run as a user would."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_job_script(
    name: str, *line: object, folder: Path, environment: Mapping[str, str], here: bool = True
) -> subprocess.CompletedProcess[str]:
    """What `python jobs/NAME.py LINE` does in a folder.

    Args:
        environment: all of it.
        here: whether in this process, which has imported torch already and so is seconds faster; not for --local
            and logs, which become another program.
    """
    arguments = [str(ROOT / "jobs" / f"{name}.py"), *map(str, line)]
    if not here:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    printed, complaints = StringIO(), StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        mock.patch.dict(os.environ, environment, clear=True),
        redirect_stdout(printed),
        redirect_stderr(complaints),
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(arguments[0], run_name="__main__")
    return subprocess.CompletedProcess(
        arguments, int(end.value.code or 0), printed.getvalue(), complaints.getvalue()
    )
