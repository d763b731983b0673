"""What each task of a job runs: one of the package's own commands, as `srun python -m autoreid.train ...` would."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PackageCommand:
    """A command of the package, for submitit to pickle and to call in every task.

    Attributes:
        module: such as "train" for python -m autoreid.train.
        arguments: its command line.
        folder: working directory, which relative paths of the command line start from.
    """

    module: str
    arguments: Sequence[str]
    folder: Path

    def __call__(self) -> None:
        """Runs it, and ends the task with its exit status.

        submitit's handler for SIGUSR2 would pull rank 0 alone away from the others, and the one for SIGTERM do
        nothing. Until the command sets its own, a signal ends the task as it would any program.

        Raises:
            SystemExit: always: the exit status is Slurm's, and what the command wrote is its result.
        """
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(self.folder)
        command = importlib.import_module(f"autoreid.{self.module}")
        raise SystemExit(command.main(list(self.arguments)))

    def __str__(self) -> str:
        return f"python -m autoreid.{self.module} {' '.join(self.arguments)}"
