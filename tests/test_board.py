"""The event file of a run, read back with TensorBoard's reader."""

from __future__ import annotations

import io
import logging
import resource
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autoreid.reporting.board import Board
from tests.helpers.events import points, read_events


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pictures_of_several_epochs_are_read_back_unchanged_under_one_tag(tmp_path):
    pictures = [noise(20, 30 + epoch, epoch) for epoch in range(3)]
    with Board(tmp_path / "board") as board:
        for epoch, picture in enumerate(pictures):
            Image.fromarray(picture).convert("RGBA").save(tmp_path / "graph.png")
            board.picture("genotype/normal", tmp_path / "graph.png", epoch * 100)
            board.picture("people", picture[::-1], epoch)
    events = read_events(tmp_path / "board")
    assert set(events.Tags()["images"]) == {"genotype/normal", "people"}
    assert [event.step for event in events.Images("genotype/normal")] == [0, 100, 200]
    for tag, turn in (("genotype/normal", 1), ("people", -1)):
        for event, picture in zip(events.Images(tag), pictures, strict=True):
            decoded = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
            np.testing.assert_array_equal(decoded[::turn], picture)
            assert (event.height, event.width) == picture.shape[:2]


def test_scalars_and_text_are_read_back(tmp_path):
    with Board(tmp_path) as board:
        board.text("config", "    seed: 1\n    ümlaut: ja")
        board.scalars({"loss/total": 2.5, "rate": 0.1}, 3)
        board.scalars({"loss/total": float("nan")}, 4)
    assert points(tmp_path, "loss/total")[0] == (3, 2.5)
    assert np.isnan(points(tmp_path, "loss/total")[1][1])
    assert points(tmp_path, "rate") == [(3, pytest.approx(0.1, rel=1e-6))]
    (text,) = read_events(tmp_path).Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    seed: 1\n    ümlaut: ja"


@settings(max_examples=10, deadline=None)
@given(
    before=st.integers(0, 6),
    saved=st.integers(0, 6),
    after=st.integers(0, 6),
)
def test_a_resumed_run_shows_each_step_once(tmp_path_factory, before, saved, after):
    folder = tmp_path_factory.mktemp("board")
    saved = min(saved, before)
    with Board(folder) as board:
        for step in range(1, before + 1):
            board.scalars({"loss": 10.0 + step}, step)
    with Board(folder, after_step=saved) as board:
        for step in range(saved + 1, saved + after + 1):
            board.scalars({"loss": 20.0 + step}, step)
    assert len(list(folder.iterdir())) == 2
    expected = [(step, 10.0 + step) for step in range(1, saved + 1)]
    expected += [(step, 20.0 + step) for step in range(saved + 1, saved + after + 1)]
    assert points(folder, "loss") == expected


def test_a_run_that_starts_from_the_beginning_hides_earlier_steps(tmp_path):
    for value in (1.0, 2.0):
        with Board(tmp_path) as board:
            board.scalars({"loss": value}, 0)
    assert points(tmp_path, "loss") == [(0, 2.0)]


def test_a_run_that_starts_from_the_beginning_has_none_of_the_earlier_pictures(tmp_path):
    """TensorBoard's page of images fails if a tag has no picture left."""
    for tags in (("roc", "cmc"), ("cmc",)):
        with Board(tmp_path) as board:
            for tag in tags:
                board.picture(tag, noise(4, 4, 0), 0)
    assert read_events(tmp_path).Tags()["images"] == ["cmc"]


def test_flushed_values_are_in_the_file_before_it_is_closed(tmp_path):
    board = Board(tmp_path)
    board.scalars({"loss": 1.0}, 1)
    board.flush()
    assert points(tmp_path, "loss") == [(1, 1.0)]
    board.close()
    board.scalars({"loss": 2.0}, 2)
    assert points(tmp_path, "loss") == [(1, 1.0)]


def test_a_full_disk_stops_the_board_but_not_the_run(tmp_path, caplog):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    caplog.set_level(logging.WARNING)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        with Board(tmp_path) as board:
            board.scalars({"loss": 1.0}, 1)
            for step in range(1, 31):
                board.picture("noise", noise(50, 50, step), step)
                board.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(caplog.records) == 1
    assert f"{tmp_path}: cannot write for TensorBoard any more: File too large" in caplog.text
    assert points(tmp_path, "loss") == [(1, 1.0)]
    assert [event.step for event in read_events(tmp_path).Images("noise")] == [1, 2]
