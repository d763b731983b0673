"""The results of a sweep as a table."""

from __future__ import annotations

import json
from typing import Any

from autoreid.files import write_atomically
from autoreid.slurm.runs import Run, read_runs
from autoreid.sweeps.results import figures, means, write_hparams
from autoreid.sweeps.sweep import Sweep
from autoreid.sweeps.table import csv_of, markdown_of, text_of


def describe(sweep: Sweep, run: Run) -> dict[str, Any]:
    """Return a run of a sweep as a JSON object; values that are not known are null."""
    name = run.folder.name
    has_begun = bool(run.events) or run.is_active
    return {
        "run": name,
        "folder": str(run.folder),
        "values": sweep.runs[name],
        "state": run.state if has_begun else "not started",
        "epoch": run.progress.get("epoch"),
        "epochs": run.progress.get("epochs"),
        **figures(sweep.run_folder(name)),
        "job": run.job,
        "reason": run.last_reason,
    }


def show_results(sweep: Sweep, as_json: bool = False) -> None:
    """Print the table of a sweep, and write it and the values for TensorBoard to the sweep's folder.

    Raises:
        RunError: a file cannot be written.
    """
    rows = [describe(sweep, run) for run in read_runs([sweep.folder / name for name in sweep.runs])]
    averages = means(sweep, rows)
    print(
        json.dumps({"runs": rows, "means": averages}, indent=1) if as_json else text_of(sweep, rows, averages)
    )
    write_atomically(sweep.folder / "table.md", markdown_of(sweep, rows, averages).encode())
    write_atomically(sweep.folder / "table.csv", csv_of(sweep, rows).encode())
    write_hparams(sweep)
