"""Dry runs of scripts/gpu_check.sh and its parts on a CPU, and the script's handling of errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from autoreid.cli import run_command
from benchmarks.gpu import recipes, summary
from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.determinism import differing, tensors_of
from benchmarks.gpu.harness import Case, Check, call
from benchmarks.gpu.memory import largest
from benchmarks.gpu.meters import count_kernels, noting_waits, tf32
from benchmarks.gpu.product_tests import counts, files
from tests.helpers.commands import run_python

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 600


def check(*line: object, python: Path | str = sys.executable, folder: Path = ROOT):
    command = [str(ROOT / "scripts/gpu_check.sh"), *map(str, line)]
    # Without PYTHONPATH: the script needs the dependencies, not an installed package.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHON"] = str(python)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wholes(rows: list[dict]) -> dict[str, dict]:
    return {row["part"]: row for row in rows if row["case"] == "whole"}


#: Parts that the script itself runs in the tests. The others are run as the script does, without its start-up times.
BY_SCRIPT = ("product_tests", "ceilings")


@pytest.fixture(scope="module")
def by_script(tmp_path_factory):
    """The output folder and the output of a dry run of two parts by the script."""
    folder = tmp_path_factory.mktemp("gpu_check")
    done = check(
        "--dry-run",
        "--output",
        "results",
        *(f"{part}:{PATIENCE_SECONDS}" for part in BY_SCRIPT),
        folder=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results", done.stdout


@pytest.fixture(scope="module")
def dry_run(by_script, tmp_path_factory):
    """All rows of a dry run of all parts."""
    folder = tmp_path_factory.mktemp("parts")
    results, scratch = folder / "results.jsonl", folder / "scratch"
    scratch.mkdir()
    for part in PARTS:
        if part not in BY_SCRIPT:
            line = ["-m", "benchmarks.gpu", part, "--results", results, "--scratch", scratch, "--dry-run"]
            done = run_python(*line, environment={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
            assert done.returncode == 0, done.stdout + done.stderr
    return read(by_script[0] / "results.jsonl") + read(results)


@pytest.mark.slow
def test_a_dry_run_measures_every_part_without_an_error(dry_run):
    assert list(wholes(dry_run)) == list(BY_SCRIPT)
    assert all(row["status"] == 0 and not row["timed_out"] for row in wholes(dry_run).values())
    cases = [row for row in dry_run if row["case"] != "whole"]
    assert not [row for row in cases if row.keys() & {"error", "skipped", "out_of_memory"}]
    assert {row["part"] for row in cases} == {"versions", *PARTS}


@pytest.mark.slow
def test_the_measurements_of_a_dry_run_are_consistent(dry_run):
    rows = {(row["part"], row["case"]): row for row in dry_run}
    for (part, case), row in rows.items():
        if part == "determinism" and case != "whole":
            assert row["tensors"] > 100
            assert row["different_again"] == row["different_resumed"] == []
        if part == "ranks" and case != "whole":
            assert 0 < row["weights_difference"] < 1e-4
            assert row["alphas_difference"] < 1e-4
        if part == "ranking" and "cpu_s" in row:
            assert row["map_difference"] == 0
    precision = rows["precision", "darts_triplet, second order, batch 32, against float64"]
    assert precision["float32_error"] < 0.05 < precision["bfloat16_error"]


@pytest.mark.slow
def test_the_summary_is_a_table_of_all_cases(by_script, dry_run):
    folder, printed = by_script
    text = (folder / "summary.md").read_text()
    assert text in printed
    assert summary.table(read(folder / "results.jsonl"))[0].strip() == text.strip()
    assert "product_tests: pytest -m gpu" in (folder / "log.txt").read_text()
    title, _, versions, _, header, rule, *lines = summary.table(dry_run)[0].splitlines()
    assert title == "### no GPU (dry run)"
    assert f"torch {torch.__version__}" in versions
    columns = header.count("|")
    assert all(line.count("|") == columns for line in [rule, *lines])
    cases = [row for row in dry_run if row["case"] != "whole"]
    named = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in lines]
    assert named == [(row["part"], row["case"]) for row in cases if row["part"] != "versions"]
    assert all(line.split("|")[3].strip() for line in lines)


def fake_python(folder: Path, hanging: str) -> Path:
    """An interpreter with which one part hangs and ignores SIGTERM, and the others do nothing."""
    path = folder / "python"
    path.write_text(
        f"#!/bin/bash\ncase $3 in\n"
        f"{hanging}) trap '' TERM; exec sleep 600 ;;\n"
        f'summary) exec {sys.executable} "$@" ;;\n'
        f"esac\n"
    )
    path.chmod(0o755)
    return path


def test_all_parts_run_in_order_and_in_a_dry_run_without_limits_of_their_own(tmp_path):
    python = fake_python(tmp_path, "none")
    done = check("--dry-run", "--output", tmp_path / "out", "--budget", 700, python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = wholes(read(tmp_path / "out/results.jsonl"))
    assert list(rows) == list(PARTS)
    assert all(row["status"] == 0 and not row["timed_out"] for row in rows.values())
    limits = [int(limit) for limit in re.findall(r"\(up to (\d+) s\)", done.stdout)]
    assert len(limits) == len(PARTS)
    assert min(limits) > 600


def test_a_part_that_hangs_is_stopped_at_its_limit_and_the_next_one_runs(tmp_path):
    python = fake_python(tmp_path, "ranking")
    done = check("--dry-run", "--output", tmp_path / "out", "ranking:1", "micros", python=python)
    assert done.returncode == 1
    parts = wholes(read(tmp_path / "out/results.jsonl"))
    assert parts["ranking"]["timed_out"]
    assert parts["micros"] == {**parts["micros"], "status": 0, "timed_out": False}
    assert "Not complete: ranking: stopped after " in (tmp_path / "out/summary.md").read_text()


@pytest.mark.slow
def test_parts_that_do_not_fit_into_the_budget_are_skipped(tmp_path):
    python = fake_python(tmp_path, "ranking")
    line = ["--dry-run", "--output", tmp_path / "out", "--budget", 13, "ranking:500", "micros"]
    assert check(*line, python=python).returncode == 1
    parts = wholes(read(tmp_path / "out/results.jsonl"))
    assert parts["micros"]["skipped"] == "no time left of 13 s"
    assert "micros: skipped" in (tmp_path / "out/summary.md").read_text()


def test_a_missing_module_is_a_one_line_error(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nexec {sys.executable} -S "$@"\n')  # without site-packages
    python.chmod(0o755)
    done = check("--dry-run", "--output", tmp_path / "out", python=python)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "has no module torch; run `python -m pip install" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_a_one_line_error(tmp_path):
    done = check("--output", tmp_path / "out")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "sees no CUDA device; test the script on the CPU with --dry-run" in line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["speed"], "unknown part speed; available parts: product_tests supernet steps"),
        (["ranking:soon"], "ranking:soon: not of the form PART or PART:SECONDS"),
        (["--budget", "long"], "--budget long: not a whole number of seconds"),
        (["--budget"], "--budget needs a value"),
        (["--fast"], "unknown option --fast; --help lists the options"),
    ],
)
def test_a_wrong_command_line_is_rejected(line, said):
    done = check(*line)
    assert done.returncode == 2
    assert done.stderr.startswith(f"gpu_check: {said}")
    assert len(done.stderr.splitlines()) == 1


def test_earlier_results_are_not_overwritten(tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text("measured\n")
    done = check("--dry-run", "--output", tmp_path, "ceilings")
    assert done.returncode == 2
    assert "already contains results" in done.stderr
    assert results.read_text() == "measured\n"


def test_help_names_every_part():
    done = check("--help")
    assert done.returncode == 0
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("  ") and ":" in line][
        -len(PARTS) :
    ] == [f"  {part}" for part in PARTS]


def test_a_case_that_raises_is_recorded_and_the_next_one_runs(tmp_path, capsys):
    def broken():
        raise ValueError("of some kind\nor other")

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore of it.")

    cases = [
        Case("broken", broken),
        Case("full", full),
        Case("late", dict, least_seconds=1e6),
        Case("whole one", lambda: {"ms": 2.5}, to_reach="2 ms"),
    ]
    Check("part", tmp_path / "results.jsonl", tmp_path, seconds=100, dry_run=True).run(cases)
    rows = read(tmp_path / "results.jsonl")
    assert [row["case"] for row in rows] == ["broken", "full", "late", "whole one"]
    broken_row, full_row, late_row, good_row = rows
    assert broken_row["error"] == "ValueError: of some kind\nor other"
    assert "in broken" in capsys.readouterr().err  # the traceback
    assert full_row["out_of_memory"] == "CUDA out of memory."
    assert "1000000 s needed" in late_row["skipped"]
    assert (good_row["ms"], good_row["to_reach"]) == (2.5, "2 ms")
    text, complete = summary.table(rows)
    assert not complete
    assert "| part | broken | failed: ValueError: of some kind or other |  |" in text
    assert "| part | whole one | 2.5 ms | 2 ms |" in text


def test_a_command_that_takes_too_long_is_stopped():
    with pytest.raises(TimeoutError, match="took longer than 1 s"):
        call(["sleep", "600"], 1.0)
    assert call([sys.executable, "-c", "print('said'); raise SystemExit(3)"], 60.0) == (3, "said\n")


@pytest.mark.parametrize("limit", [0, 3, 4, 17, 31, 32, 40])
def test_bisection_finds_the_largest_batch(limit):
    tried = [images for images in range(0, 32, 4) if images <= limit]
    assert largest(lambda images: images <= limit, 0, 32, 4) == tried[-1]


def test_different_states_are_found():
    state = {"weights": {"a": torch.zeros(2), "b": [torch.ones(1), {"c": torch.ones(3)}]}, "step": 3}
    tensors = tensors_of(state)
    assert list(tensors) == [".weights.a", ".weights.b.0", ".weights.b.1.c"]
    other = {name: tensor.clone() for name, tensor in tensors.items()}
    assert differing(tensors, other) == []
    other[".weights.b.0"][0] += 1e-7
    del other[".weights.a"]
    assert differing(tensors, other) == [".weights.a", ".weights.b.0"]


def test_operations_are_counted():
    x = torch.ones(3)
    found = count_kernels(lambda: [x.add(x) for _ in range(5)], torch.device("cpu"))
    assert found["kernels"] == 5
    assert found["longest"][0][:2] == ["aten::add", 5]


def test_waits_are_counted_at_the_lines_that_lead_to_them():
    def wait() -> int:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return 0

    with noting_waits() as found:
        assert run_command(wait) == run_command(wait) == 0
        wait()
        warnings.warn("something else", stacklevel=1)
    assert sorted(found.values()) == [1, 2]
    (line, _), _ = found.most_common()
    path, number = line.split(":")
    assert path == "autoreid/cli.py"
    assert "command()" in (ROOT / path).read_text().splitlines()[int(number) - 1]


def test_the_tf32_setting_is_restored():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for allowed in (True, False):
        with tf32(allowed):
            assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is allowed
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_tests_for_gpus_are_found_and_counted():
    assert "tests/test_gpu.py" in files()
    assert not any(Path(file).name == Path(__file__).name for file in files())
    assert counts("..s\n2 passed, 1 skipped, 3 errors in 1.2s\n") == {"passed": 2, "skipped": 1, "error": 3}


@pytest.mark.parametrize("mode", recipes.MODES)
def test_the_modes_are_those_of_the_config(tmp_path, mode):
    check = Check("part", tmp_path / "results.jsonl", tmp_path, dry_run=True)
    (tmp_path / "data/people").mkdir(parents=True)
    changes = recipes.overrides([mode])
    key, _, value = changes[0].partition("=")
    section, _, name = key.partition(".")
    config = recipes.recipe(check, "darts_triplet.yaml", *changes)
    assert str(getattr(getattr(config, section), name)).lower() == value
