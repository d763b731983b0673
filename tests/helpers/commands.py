"""Run Python programs and the commands of jobs/ as a user would, without the seconds that importing torch takes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest

from tests.helpers.ranks import forkserver, free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 600


def run_python(
    *line: object, folder: Path = ROOT, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Run `python LINE`, such as `python -m autoreid.train --help`, in a process that is forked with torch imported.

    Args:
        line: a script with its arguments, `-m` with a module and its arguments, or `-c` with code and its arguments.
        environment: the complete environment. Variables that are read at imports have no effect on the process itself.
    """
    words = [str(word) for word in line]
    with TemporaryDirectory() as place:
        output = Path(place)
        process = forkserver().Process(target=_python, args=(words, folder, dict(environment), output))
        process.start()
        process.join(PATIENCE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        stdout, stderr = ((output / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(words, process.exitcode or 0, stdout, stderr)


def run_python_on_two_ranks(
    *line: object, environment: Mapping[str, str] = os.environ
) -> list[subprocess.CompletedProcess[str]]:
    """Run `python LINE` on two ranks, as torchrun would start them."""
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def run(rank: int) -> subprocess.CompletedProcess[str]:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        return run_python(*line, environment={**environment, **launch, **own})

    with ThreadPoolExecutor() as pool:
        return list(pool.map(run, range(2)))


def _python(words: Sequence[str], folder: Path, environment: Mapping[str, str], output: Path) -> None:
    """Do what Python does with a command line, in a new process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        exec(words[1], {"__name__": "__main__"})  # noqa: S102
    elif words[0] == "-m":
        sys.argv = list(words[1:])
        sys.path.insert(0, str(folder))
        warnings.filterwarnings("ignore", module="runpy")  # the module has been imported before
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def run_job_script(
    name: str, *line: object, folder: Path, environment: Mapping[str, str], here: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `python jobs/NAME.py LINE` in a folder.

    Args:
        environment: the complete environment of the command.
        here: whether to run it in this process. Not possible for --local and logs, which start or become another
            program.
    """
    arguments = [str(ROOT / "jobs" / f"{name}.py"), *map(str, line)]
    if not here:
        return run_python(*arguments, folder=folder, environment=environment)
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
