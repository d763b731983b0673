"""Run the commands of jobs/ as a user would."""

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
    """Run `python jobs/NAME.py LINE` in a folder.

    Args:
        environment: the complete environment of the command.
        here: whether to run it in this process, which saves the seconds of importing torch. Not possible for --local
            and logs, which start or become another program.
    """
    arguments = [str(ROOT / "jobs" / f"{name}.py"), *map(str, line)]
    if not here:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    stdout, stderr = StringIO(), StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        mock.patch.dict(os.environ, environment, clear=True),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(arguments[0], run_name="__main__")
    return subprocess.CompletedProcess(
        arguments, int(end.value.code or 0), stdout.getvalue(), stderr.getvalue()
    )
