"""The tests of the package that need a GPU."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from benchmarks.gpu.harness import ROOT, Case, Check, Figures, call


def files() -> list[str]:
    """Return the test files with GPU tests. Collecting all other files would take longer than running these."""
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in tests if "mark.gpu" in path.read_text(encoding="utf-8")]


def counts(printed: str) -> dict[str, int]:
    """Parse the counts in the last line of pytest's output, such as {"passed": 3, "skipped": 1}."""
    *_, last = printed.strip().splitlines() or [""]
    return {
        kind.rstrip("s"): int(count)
        for count, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)
    }


def measure(check: Check) -> Figures:
    """Run the tests, and raise an error that names the failed ones."""
    options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    status, printed = call([sys.executable, *options, *files()], check.seconds_left() - 8)
    print(printed)
    if status:
        lines = [line for line in printed.splitlines() if line.startswith(("FAILED", "ERROR"))]
        raise RuntimeError("; ".join(lines[:8]) or printed.strip()[-500:])
    return {f"tests_{kind}": count for kind, count in counts(printed).items()}


def cases(check: Check) -> Iterator[Case]:
    """Yield one case."""
    yield Case("pytest -m gpu", lambda: measure(check), 20, "all pass")
