"""The table of a sweep: as text, as Markdown and as CSV."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Mapping, Sequence
from typing import Any

from autoreid.reporting.text_table import as_markdown, as_text
from autoreid.sweeps.results import SEED, Row, finished
from autoreid.sweeps.sweep import Sweep
from autoreid.sweeps.swept_key import SweptValue

#: Columns that a table has if a run has a value.
_SIZES = {"parameters": "parameters", "macs": "MACs", "cost": "cost of genotype"}
_CSV = ("run", "state", "epoch", "epochs", "map", "rank1", "seconds", *_SIZES, "job", "reason")


def text_of(sweep: Sweep, rows: Sequence[Row], means: Sequence[Row]) -> str:
    """Return the table of all runs, the table of the means if there are any, and notes."""
    tables = [as_text(_run_cells(sweep, rows)), *([as_text(_mean_cells(means))] if means else [])]
    return "\n\n".join([*tables, "\n".join(_notes(sweep, rows))])


def markdown_of(sweep: Sweep, rows: Sequence[Row], means: Sequence[Row]) -> str:
    """Return the same in Markdown."""
    tables = [as_markdown(_run_cells(sweep, rows)), *([as_markdown(_mean_cells(means))] if means else [])]
    return "\n\n".join([f"# {sweep.folder.name}", *tables, *_notes(sweep, rows)]) + "\n"


def csv_of(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Return a line for each run, with all digits; mAP and rank-1 are fractions of 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*sweep.keys, *_CSV])
    for row in rows:
        writer.writerow([*_labels(row["values"]), *(row[key] for key in _CSV)])
    return text.getvalue()


def _run_cells(sweep: Sweep, rows: Sequence[Row]) -> list[list[str]]:
    sizes = {key: title for key, title in _SIZES.items() if any(row[key] is not None for row in rows)}
    head = [*sweep.keys, "state", "epoch", "mAP", "rank-1", "time", *sizes.values()]
    return [head, *([*_labels(row["values"]), *_figures(row), *_sizes(row, sizes)] for row in rows)]


def _figures(row: Row) -> list[str]:
    epoch = "" if row["epoch"] is None else f"{row['epoch']}/{row['epochs']}"
    return [row["state"], epoch, _percent(row["map"]), _percent(row["rank1"]), _duration(row["seconds"])]


def _sizes(row: Row, sizes: Mapping[str, str]) -> list[str]:
    return [
        "" if row[key] is None else f"{row[key]:,.4g}" if key == "cost" else f"{row[key]:,}" for key in sizes
    ]


def _mean_cells(means: Sequence[Row]) -> list[list[str]]:
    head = [*means[0]["values"], "seeds", "mAP", "rank-1", "time"]
    return [
        head,
        *(
            [
                *_labels(mean["values"]),
                f"{mean['finished']} of {mean['runs']}",
                _percent(mean["map"], mean["map_error"]),
                _percent(mean["rank1"], mean["rank1_error"]),
                _duration(mean["seconds"]),
            ]
            for mean in means
        ),
    ]


def _notes(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    done = finished(rows)
    seconds = sum(row["seconds"] for row in done)
    notes = [f"finished: {len(done)} of {len(rows)} runs, {_duration(seconds)} in total"]
    if SEED in sweep.keys:
        notes.append("means over the seeds of finished runs ± standard error of the mean")
    if sweep.config.evaluation.split == "test" and set(sweep.keys) != {SEED}:
        notes.append(
            "measured on the test images: to choose a value, sweep with evaluation.split=held_out instead"
        )
    return notes


def _labels(values: Mapping[str, Any]) -> list[str]:
    return [SweptValue("", value).label for value in values.values()]


def _percent(value: float | None, error: float | None = None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if error is None else f"{100 * value:.1f} ± {100 * error:.1f} %"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))
