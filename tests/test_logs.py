"""Log files of the ranks, the console with and without a terminal, and progress lines."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autoreid
from autoreid.errors import ConfigError
from autoreid.reporting.logs import PeriodicLine, progress_bar, start_logging

log = logging.getLogger("autoreid.search.loop")

RUN = """
import logging, sys
from pathlib import Path
from autoreid.reporting.logs import PeriodicLine, progress_bar, start_logging
rank = int(sys.argv[1])
start_logging(Path("logs"), rank)
log = logging.getLogger("autoreid.train")
line = PeriodicLine(total=4, initial=2, every_seconds=0.0)
with progress_bar(4, 2, "epoch 3", enabled=rank == 0) as bar:
    for step in (3, 4):
        bar.update()
        line.update("epoch 3", step, 8, lambda: {"loss": 2.31})
        log.info("stepped %d", step)
try:
    raise ValueError("it broke")
except ValueError as error:
    log.debug("a debug line")
    log.error("the run failed: %s", error, exc_info=error)
"""


@pytest.fixture(autouse=True)
def restore_logging():
    logger = logging.getLogger("autoreid")
    handlers, level = list(logger.handlers), logger.level
    yield
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)


def run(folder: Path, rank: int, terminal: bool) -> str:
    """Return the stderr of a process that logs like a run, through a pseudo-terminal or a pipe."""
    environment = {**os.environ, "PYTHONPATH": str(Path(autoreid.__file__).parents[1])}
    command = [sys.executable, "-c", RUN, str(rank)]
    if not terminal:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == ""
        return done.stderr
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux ends a pseudo-terminal with an error
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


def test_without_a_terminal_rank_0_prints_plain_lines_only(tmp_path):
    lines = run(tmp_path, 0, terminal=False).splitlines()
    assert [re.sub(r"[\d.]+ images/s", "N images/s", line) for line in lines] == [
        "epoch 3 step 3/4 loss 2.31 N images/s eta 0:00:00",
        "stepped 3",
        "epoch 3 step 4/4 loss 2.31 N images/s eta 0:00:00",
        "stepped 4",
        "error: the run failed: it broke",
    ]


def test_on_a_terminal_messages_are_printed_above_the_bar(tmp_path):
    shown = run(tmp_path, 0, terminal=True)
    assert "epoch 3:  50%" in shown
    assert "2/4" in shown
    assert "images/s" not in shown
    assert "Traceback" not in shown
    # Each message is on a separate line: the bar is first cleared with blanks and a carriage return.
    for message in ("stepped 3", "stepped 4", "error: the run failed: it broke"):
        assert re.search(rf"(^|[\r\n]|\x1b\[A){message}\r\n", shown), shown


def test_the_file_has_all_messages_and_a_resumed_run_appends_to_it(tmp_path):
    run(tmp_path, 0, terminal=True)
    first = (tmp_path / "logs" / "rank0.log").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO stepped 3$", first, re.M)
    assert re.search(r"INFO epoch 3 step 4/4 loss 2.31 [\d.]+ images/s eta 0:00:00$", first, re.M)
    assert re.search(r"DEBUG a debug line$", first, re.M)
    assert "ValueError: it broke" in first
    assert "\r" not in first
    run(tmp_path, 0, terminal=False)
    second = (tmp_path / "logs" / "rank0.log").read_text()
    assert second.startswith(first)
    assert second.count("stepped 3") == 2


def test_other_ranks_write_a_file_and_print_nothing(tmp_path):
    assert run(tmp_path, 1, terminal=True) == ""
    assert "stepped 4" in (tmp_path / "logs" / "rank1.log").read_text()
    assert not (tmp_path / "logs" / "rank0.log").exists()


def test_starting_again_moves_the_log_without_duplicating_messages(tmp_path, capsys):
    start_logging(tmp_path / "a", 0)
    start_logging(tmp_path / "b", 0)
    log.warning("careful")
    assert capsys.readouterr().err == "warning: careful\n"
    assert (tmp_path / "a" / "rank0.log").read_text() == ""
    assert (tmp_path / "b" / "rank0.log").read_text().count("careful") == 1


def test_a_log_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "rank0.log").mkdir()
    with pytest.raises(
        ConfigError, match=r"rank0\.log: cannot write the log: Is a directory; set output_dir"
    ):
        start_logging(tmp_path, 0)


def test_a_disabled_bar_prints_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(4, 0, "epoch 1", enabled=False) as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""


@settings(deadline=None)
@given(
    durations=st.lists(st.floats(0.01, 50.0), min_size=1, max_size=40),
    initial=st.integers(0, 20),
    every=st.floats(1.0, 60.0),
)
def test_lines_are_logged_at_the_interval_with_the_speed(durations, initial, every):
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("autoreid.reporting.logs")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    now, calls, expected = 100.0, [], []
    total = initial + len(durations)

    def values():
        calls.append(now)
        return {"loss": 0.5, "rate": 1e-5}

    try:
        line = PeriodicLine(total, initial, every, clock=lambda: now)
        since, last = now, initial
        for step, seconds in enumerate(durations, start=initial + 1):
            now += seconds
            line.update("epoch 1", step, 6, values)
            if now - since >= every:
                speed = 6 * (step - last) / (now - since)
                left = round((total - step) * (now - since) / (step - last))
                expected.append((step, f"{speed:.1f}", left))
                since, last = now, step
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert len(records) == len(calls) == len(expected)
    for record, (step, speed, left) in zip(records, expected, strict=True):
        eta = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        text = f"epoch 1 step {step}/{total} loss 0.5 rate 1e-05 {speed} images/s eta {eta}"
        assert record.getMessage() == text


def test_a_console_that_is_gone_does_not_stop_a_run(tmp_path, monkeypatch):
    """As in `... 2>&1 | head`, or after its terminal has closed."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stderr", closed)
        start_logging(tmp_path, 0)
        for _ in range(3):
            log.info("a step")
        monkeypatch.undo()
        with suppress(OSError):
            closed.close()
    assert (tmp_path / "rank0.log").read_text().count("a step") == 3


def test_names_that_are_not_utf_8_are_logged(tmp_path, capsys, monkeypatch):
    # pytest-xdist cannot send what pytest itself would capture.
    monkeypatch.setattr(logging.getLogger("autoreid"), "propagate", False)
    start_logging(tmp_path, 1)
    log.warning("%s: broken", os.fsdecode(b"caf\xe9.jpg"))
    assert "caf\\udce9.jpg: broken" in (tmp_path / "rank1.log").read_text()
    assert not capsys.readouterr().err
