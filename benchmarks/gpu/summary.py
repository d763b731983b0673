"""Print the measurements of a results file as a Markdown table for benchmarks/README.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

#: Formats of the measurements, in the order in which a row shows them. Others are only in the results file.
FORMATS: dict[str, str] = {
    "ms": "{:,.1f} ms",
    "host_ms": "host {:,.1f} ms",
    "s": "{:.2f} s",
    "cpu_s": "CPU {:.2f} s",
    "eager_ms": "eager {:,.1f} ms",
    "one_by_one_ms": "one by one {:,.1f} ms",
    "one_process_ms": "one process {:,.1f} ms",
    "ratio": "**ratio {:.2f}**",
    "images_a_second": "{:,.0f} images/s",
    "peak_gb": "{:.2f} GB",
    "one_by_one_peak_gb": "one by one {:.2f} GB",
    "expected_gb": "expected {:.2f} GB",
    "kernels": "{:,} kernels",
    "one_by_one_kernels": "one by one {:,} kernels",
    "launches": "{:,} launches",
    "waits": "{:,} waits",
    "data_wait": "data wait {:.1%}",
    "seconds_to_first_step": "first step after {:.0f} s",
    "fitting_images": "{:,} images fit",
    "expected_to_fit": "{:,} expected to",
    "mb_an_image": "{:.1f} MB an image",
    "map": "mAP {:.4f}",
    "map_difference": "mAP differs by {:.1e}",
    "tensors": "{} tensors",
    "different_again": "a second run: {} differ",
    "different_resumed": "resumed: {} differ",
    "alphas_difference": "alphas differ by {:.1e}",
    "weights_difference": "weights differ by {:.1e}",
    "backend": "{}",
    "all_reduce_us": "all-reduce {:.0f} µs",
    "tests_passed": "{} passed",
    "tests_skipped": "{} skipped",
    "float32_cosine": "float32: cosine {:.4f}",
    "float32_error": "error {:.2%}",
    "tf32_cosine": "tf32: cosine {:.4f}",
    "tf32_error": "error {:.2%}",
    "bfloat16_cosine": "bfloat16: cosine {:.4f}",
    "bfloat16_error": "error {:.2%}",
    "copy_tb_a_second": "copies {:.2f} TB/s",
    "from_pinned_gb_a_second": "from pinned memory {:.1f} GB/s",
    "from_pageable_gb_a_second": "pageable {:.1f} GB/s",
    "float32_tflops": "float32 {:.0f} TFLOP/s",
    "tf32_tflops": "tf32 {:.0f} TFLOP/s",
    "bfloat16_tflops": "bfloat16 {:.0f} TFLOP/s",
    "launch_us": "{:.1f} µs a launch",
    "autograd_us": "{:.1f} µs forward and backward",
    "no_bias_us": "no bias {:.0f} µs",
    "zero_bias_us": "zero bias {:.0f} µs",
    "no_bias_channels_last_us": "channels last: no bias {:.0f} µs",
    "zero_bias_channels_last_us": "zero bias {:.0f} µs",
    "copies_us": "copies {:.0f} µs",
    "multiplier_us": "multiplier {:.0f} µs",
    "convolution_us": "convolution {:.0f} µs",
    "product_us": "product {:.0f} µs",
    "two_us": "one after the other {:.0f} µs",
    "dense_us": "dense {:.0f} µs",
    "out_of_memory": "out of memory",
    "skipped": "skipped: {}",
    "error": "failed: {}",
}
#: The case that scripts/gpu_check.sh writes for a part as a whole.
WHOLE = "whole"
_LONGEST_TEXT = 160


def shown(row: Row) -> str:
    """Return the measurements of a case as text."""
    words = []
    for name, form in FORMATS.items():
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, list):
            value = len(value)
        text = form.format(value).replace("|", "\\|").replace("\n", " ")
        words.append(text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…")
    return ", ".join(words)


def heading(versions: Row) -> str:
    """Return the heading of the table, with the GPU, versions and commit."""
    named = {
        "driver": versions.get("driver"),
        "torch": versions.get("torch"),
        "CUDA": versions.get("cuda"),
        "cuDNN": versions.get("cudnn"),
        "Python": versions.get("python"),
        "commit": versions.get("commit"),
    }
    known = [f"{name} {value}" for name, value in named.items() if value]
    host = f"{versions.get('cores', '?')} cores of {versions.get('cpu', 'an unknown processor')}"
    return (
        f"### {versions.get('gpu', 'unknown GPU')}\n\n"
        f"{', '.join([*known, host, versions.get('date', 'date unknown')])}."
    )


def what_happened(row: Row) -> str:
    """Return why a part did not succeed, or an empty string."""
    if "skipped" in row:
        return f"skipped ({row['skipped']})"
    if row.get("timed_out"):
        return f"stopped after {row['seconds']} s"
    return f"ended with status {row['status']}" if row.get("status") else ""


def table(rows: Iterable[Row]) -> tuple[str, bool]:
    """Return the Markdown text, and whether all parts and cases succeeded."""
    rows = list(rows)
    versions = next((row for row in rows if row["part"] == "versions"), {})
    lines = [heading(versions), "", "| part | case | measured | to reach |", "|---|---|---|---|"]
    complete = True
    missing = []
    for row in rows:
        if row["part"] == "versions":
            continue
        if row["case"] == WHOLE:
            if text := what_happened(row):
                missing.append(f"{row['part']}: {text}")
            continue
        complete &= not row.keys() & {"error", "skipped"}
        lines.append(f"| {row['part']} | {row['case']} | {shown(row)} | {row['to_reach']} |")
    if missing:
        lines += ["", f"Not complete: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n", complete and not missing


def main(results: Path) -> int:
    """Print the table, and return 0 if everything succeeded, else 1."""
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    text, complete = table(rows)
    print(text, end="")
    return 0 if complete else 1
