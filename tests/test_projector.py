"""The files of TensorBoard's projector, read back, also with TensorBoard's own parser."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autoreid.data.records import JUNK
from autoreid.evaluate import MAX_PROJECTED, main
from autoreid.evaluation.features import FeatureSet
from autoreid.reporting import projector
from autoreid.reporting.projector import TILE, choose_people, thumbnails, write_config, write_embedding

projector_config_pb2 = pytest.importorskip("tensorboard.plugins.projector.projector_config_pb2")

#: Width and height of the images.
SIZES = [(32, 64), (64, 32), (50, 50), (10, 200)]


@pytest.fixture
def sets(tmp_path):
    """A query and a gallery of pictures of one colour each, of several sizes, with the colours by path."""
    rng = np.random.default_rng(0)
    colours, made = {}, []
    for name, N in (("query", 6), ("gallery", 15)):
        paths = []
        for number in range(N):
            path = tmp_path / f"{name}-{number}.png"
            colours[str(path)] = tuple(int(part) for part in rng.integers(0, 256, 3))
            Image.new("RGB", SIZES[number % 4], colours[str(path)]).save(path)
            paths.append(str(path))
        identities = np.arange(N) % 3 + 5
        made.append(
            FeatureSet(rng.normal(size=(N, 4)).astype(np.float32), identities, np.arange(N), np.array(paths))
        )
    return *made, colours


def test_the_files_hold_the_features_labels_and_thumbnails_of_the_same_images(sets, tmp_path):
    query, gallery, colours = sets
    write_config(tmp_path, ["something else"])
    write_config(tmp_path, [write_embedding(tmp_path, 'net/"people"', query, gallery, 15)])
    config = projector_config_pb2.ProjectorConfig()
    text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    assert embedding.tensor_name == 'net/"people"'

    chosen = [np.flatnonzero(part.identities < 7) for part in (query, gallery)]  # 7 images each
    parts = [part.select(rows) for part, rows in zip((query, gallery), chosen, strict=True)]
    features = np.loadtxt(tmp_path / embedding.tensor_path, delimiter="\t", ndmin=2)
    np.testing.assert_allclose(features, np.concatenate([part.features for part in parts]), rtol=1e-6)
    with (tmp_path / embedding.metadata_path).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert all(row["label"] == f"{row['identity']} c{row['camera']} {row['split']}" for row in rows)
    assert [row["path"] for row in rows] == [path for part in parts for path in part.paths]
    assert [int(row["identity"]) for row in rows] == [who for part in parts for who in part.identities]
    assert [int(row["camera"]) for row in rows] == [camera for part in parts for camera in part.cameras]
    assert [row["split"] for row in rows] == ["query"] * len(parts[0]) + ["gallery"] * len(parts[1])

    assert list(embedding.sprite.single_image_dim) == [TILE, TILE]
    with Image.open(tmp_path / embedding.sprite.image_path) as file:
        sheet = np.asarray(file.convert("RGBA"))
    assert sheet.shape == (4 * TILE, 4 * TILE, 4)  # 14 images
    for number, row in enumerate(rows):
        top, left = TILE * (number // 4), TILE * (number % 4)
        tile = sheet[top : top + TILE, left : left + TILE]
        shown = tile[tile[..., 3] == 255]
        assert (shown[:, :3] == colours[row["path"]]).all()
        height, width = (tile[..., 3].any(axis=axis).sum() for axis in (1, 0))
        with Image.open(row["path"]) as file:
            assert max(height, width) == TILE
            assert width / height == pytest.approx(file.width / file.height, abs=0.02)
        middle = TILE // 2
        assert tile[middle, middle, 3] == 255
    assert not sheet[3 * TILE :, 2 * TILE :].any()


def test_a_thumbnail_is_upright(tmp_path):
    pixels = np.zeros((TILE, TILE, 3), np.uint8)
    pixels[: TILE // 2, : TILE // 4] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    assert np.array_equal(np.asarray(thumbnails([str(tmp_path / "one.png")]))[..., :3], pixels)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(0, 30), st.integers(1, 60))
def test_people_are_chosen_whole_as_many_as_fit(seed, Q, G, limit):
    rng = np.random.default_rng(seed)
    query, gallery = (
        FeatureSet(np.zeros((N, 1), np.float32), rng.integers(JUNK, 6, N), np.zeros(N, int), np.full(N, ""))
        for N in (Q, G)
    )
    people = sorted({int(who) for who in query.identities} - {JUNK})
    expected, counts = [], []
    for who in people:
        images = [("q", n) for n in range(Q) if query.identities[n] == who]
        images += [("g", n) for n in range(G) if gallery.identities[n] == who]
        counts.append(len(images))
        if not expected:
            expected += images[:limit]
        elif sum(counts) <= limit:
            expected += images
    chosen = choose_people(query, gallery, limit)
    assert [rows.tolist() for rows in chosen] == [
        sorted(n for part, n in expected if part == wanted) for wanted in ("q", "g")
    ]


def test_the_most_images_fill_the_largest_picture_of_tensorboard():
    assert MAX_PROJECTED == (8192 // TILE) ** 2


def test_features_without_images_have_no_thumbnails(tmp_path, capsys, caplog):
    for name in ("query", "gallery"):
        arrays = {"features": np.ones((3, 2)), "identities": np.arange(3), "cameras": np.full(3, len(name))}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    files = [f"--{name}={tmp_path / name}.npz" for name in ("query", "gallery")]
    line = [*files, "--device=cpu", "--projector=6"]
    assert main([*line, f"--output={tmp_path / 'out'}"]) == 0
    assert "query/gallery: the projector has no thumbnails: the features have no image paths" in caplog.text
    config = projector_config_pb2.ProjectorConfig()
    text_format.Parse((tmp_path / "out/tensorboard/projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    assert not embedding.HasField("sprite")
    assert (tmp_path / "out/tensorboard" / embedding.tensor_path).exists()
    assert main([*files, "--device=cpu", f"--output={tmp_path / 'out'}"]) == 0
    assert not (tmp_path / "out/tensorboard/projector_config.pbtxt").exists()
    assert main(line) == 2
    assert "--projector: requires --output" in capsys.readouterr().err
    assert main([*line, "--projector=20000", f"--output={tmp_path / 'out'}"]) == 2
    assert "--projector 20000: must be at most 16384" in capsys.readouterr().err


def test_names_that_are_not_utf_8_are_escaped(tmp_path, monkeypatch):
    monkeypatch.setattr(projector, "thumbnails", lambda paths: Image.new("RGBA", (64, 64)))
    images = FeatureSet(
        np.ones((1, 2), np.float32), np.ones(1, int), np.ones(1, int), np.array(["a\udcff.png"])
    )
    write_embedding(tmp_path, "net/people", images, images, 2)
    text = (tmp_path / "projector/net/people/metadata.tsv").read_text(encoding="utf-8")
    assert text.count("a\\udcff.png") == 2
