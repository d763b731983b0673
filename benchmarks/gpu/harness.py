"""Run the cases of a part. A case that fails does not stop the others."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
#: The measurements of a case, by name. Names end with their unit if they have one, as in `peak_gb`.
Figures = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: name of its row in the table.
        measure: function that takes the measurement.
        least_seconds: the case is skipped if the part has less time left.
        to_reach: the project's target on one H100, as text.
    """

    name: str
    measure: Callable[[], Figures]
    least_seconds: float = 5.0
    to_reach: str = ""


class Check:
    """The device, time limit and results file of a part.

    Args:
        part: name of the part.
        results: file to which a line of JSON is appended for each case.
        scratch: folder for data sets and runs.
        seconds: time limit of the part.
        dry_run: whether to use tiny sizes on the CPU.
    """

    def __init__(
        self,
        part: str,
        results: Path,
        scratch: Path,
        seconds: float = math.inf,
        dry_run: bool = False,
    ) -> None:
        self.part, self.results, self.scratch, self.dry_run = part, results, scratch, dry_run
        self.device = torch.device("cpu") if dry_run else torch.device("cuda", 0)
        self._deadline = time.monotonic() + seconds

    @staticmethod
    def problem(dry_run: bool) -> str | None:
        """Return why nothing can be measured on this machine, or None."""
        if dry_run or torch.cuda.is_available():
            return None
        return f"torch {torch.__version__} sees no CUDA device; test the script on the CPU with --dry-run"

    def pick(self, full: T, tiny: T) -> T:
        """Return `full`, or `tiny` in a dry run."""
        return tiny if self.dry_run else full

    def seconds_left(self) -> float:
        """Return the seconds until the time limit of the part."""
        return self._deadline - time.monotonic()

    def run(self, cases: Iterable[Case]) -> None:
        """Run the cases in order, and write the measurements of each."""
        for case in cases:
            print(f"{self.part}: {case.name}", flush=True)
            figures = self._measure(case)
            self._write(case, figures)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measure(self, case: Case) -> Figures:
        left = self.seconds_left()
        if left < case.least_seconds:
            return {"skipped": f"{left:.0f} s left, {case.least_seconds:.0f} s needed"}
        started = time.monotonic()
        try:
            figures = case.measure()
        except torch.OutOfMemoryError as error:
            figures = {"out_of_memory": str(error).splitlines()[0]}
        except Exception as error:
            traceback.print_exc()
            figures = {"error": f"{type(error).__name__}: {error}"[:700]}
        return figures | {"case_seconds": round(time.monotonic() - started, 1)}

    def _write(self, case: Case, figures: Figures) -> None:
        line = json.dumps({"part": self.part, "case": case.name, "to_reach": case.to_reach, **figures})
        with self.results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def call(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Run a command in the root of the repository.

    Returns:
        The exit status and the output of the command.

    Raises:
        TimeoutError: the command took longer than `seconds`. It gets SIGTERM first, so that a launcher can end its
            workers.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        try:
            printed, _ = process.communicate(timeout=None if math.isinf(seconds) else max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=5)
            process.kill()
            raise TimeoutError(f"{' '.join(command)} took longer than {seconds:.0f} s") from None
        return process.returncode, printed
