"""The command that each Slurm task of a job runs, as `srun python -m autoreid.train ...` would run it.

The pickled commands of submitted jobs name this module and its class: renaming them breaks jobs in the queue.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PackageCommand:
    """A command of the package, which submitit pickles and calls in every Slurm task.

    Attributes:
        module: module of the command, for example "train" for python -m autoreid.train.
        arguments: its command line arguments.
        folder: working directory; relative paths in the arguments are relative to it.
    """

    module: str
    arguments: Sequence[str]
    folder: Path

    def __call__(self) -> None:
        """Run the command and exit with its status.

        submitit's handler for SIGUSR2 would stop rank 0 without the other ranks, and its handler for SIGTERM does
        nothing. Both are reset to the default here; the command then installs its own.

        Raises:
            SystemExit: always, so that Slurm gets the exit status of the command.
        """
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(self.folder)
        command = importlib.import_module(f"autoreid.{self.module}")
        raise SystemExit(command.main(list(self.arguments)))

    def __str__(self) -> str:
        return f"python -m autoreid.{self.module} {' '.join(self.arguments)}"
