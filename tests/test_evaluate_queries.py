"""Multi-query, query expansion and verification measures on the command line of `autoreid.evaluate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import autoreid
from autoreid.config import SyntheticPeople
from autoreid.data.datasets.market1501 import read_market1501
from autoreid.data.records import JUNK
from autoreid.data.synthetic.people import write_synthetic_people
from autoreid.evaluate import main
from autoreid.evaluation import evaluate_retrieval
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.multi_query import merge_queries
from tests.helpers.events import points, read_events
from tests.helpers.trained import HEIGHT, WIDTH, small_network, write_checkpoint
from tests.test_evaluate import HAS_MATPLOTLIB, ON_CPU, RANKS, assert_same, run_json
from tests.test_query_expansion import from_the_formula
from tests.test_roc import by_definition, pairs_of


@pytest.fixture
def files(tmp_path):
    """Feature files with several queries of the same person and camera, and their options."""
    rng = np.random.default_rng(0)
    options = ["--device", "cpu"]
    for name, N in (("query", 30), ("gallery", 60)):
        identities, cameras = rng.integers(0, 5, N), rng.integers(0, 2, N)
        features = rng.normal(size=(N, 6)) + 0.3 * rng.normal(size=(5, 6))[identities]
        np.savez(tmp_path / f"{name}.npz", features=features, identities=identities, cameras=cameras)
        options += [f"--{name}", str(tmp_path / f"{name}.npz")]
    return options


def load(files):
    """Return the query and the gallery of feature files."""
    return FeatureSet.load(Path(files[3])), FeatureSet.load(Path(files[5]))


def numbers_of(query, gallery):
    return query.identities, gallery.identities, query.cameras, gallery.cameras


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_queries_are_merged_and_then_expanded(files, capsys, metric):
    query, gallery = load(files)
    options = [
        "--metric",
        metric,
        "--multi-query",
        "max",
        "--query-expansion",
        "4",
        "--query-expansion-alpha",
        "0.5",
    ]
    (cell,) = run_json(capsys, *files, *options)
    merged = merge_queries(query, "max", metric)
    own = np.full(len(merged), -1)
    features = from_the_formula(merged.features, gallery.features, own, 4, 0.5, metric)
    numbers = numbers_of(merged, gallery)
    assert_same(cell, evaluate_retrieval(features, gallery.features, *numbers, metric=metric, ranks=RANKS))
    assert (cell["multi_query"], cell["queries"]) == ("max", 10)
    assert cell["query_expansion"] == {"images": 4, "alpha": 0.5}
    assert "roc" not in cell


def test_the_table_says_what_was_added(files, capsys):
    assert main([*files, "--query-expansion", "4", "--multi-query", "mean", "--rerank"]) == 0
    used = "with multi-query (mean), query expansion by 4 gallery images (alpha 3), re-ranking"
    assert used in capsys.readouterr().out.splitlines()
    assert main(files) == 0
    assert "with " not in capsys.readouterr().out
    (cell,) = run_json(capsys, *files)
    assert (cell["multi_query"], cell["query_expansion"]) == (None, None)


def test_verification_measures_are_in_the_table_the_results_and_tensorboard(files, tmp_path, capsys):
    line = [*files, "--roc", "--output", str(tmp_path / "out")]
    assert main(line) == 0
    query, gallery = load(files)
    distances = ((query.features[:, None].astype(np.float64) - gallery.features) ** 2).sum(2)
    positive, negative = pairs_of(distances, *numbers_of(query, gallery), np.full(30, -1), False)
    _, tpr_at = by_definition(positive, negative)
    assert 1000 <= len(negative) < 10_000  # so 1e-2 is the lowest rate with ten false positives
    rates = {"0.1": tpr_at(0.1 * len(negative)), "0.01": tpr_at(0.01 * len(negative))}
    header, row = capsys.readouterr().out.splitlines()[-2:]
    assert header.split("  ")[0] == "verification in %"
    found = [part.strip() for part in row.split("  ") if part]
    assert found[:5] == ["query on gallery", *(f"{100 * share:.1f}" for share in rates.values()), "-", "-"]

    (cell,) = json.loads((tmp_path / "out/result.json").read_text())["results"]
    assert cell["roc"]["tpr_at_fpr"] == rates
    assert (cell["roc"]["positive_pairs"], cell["roc"]["negative_pairs"]) == (len(positive), len(negative))
    board = tmp_path / "out/tensorboard"
    for tag in ("eer", "auc"):
        assert points(board, f"roc/{tag}/query/gallery") == [(0, pytest.approx(cell["roc"][tag]))]
    assert points(board, "roc/tpr_at_fpr_0.01/query/gallery") == [(0, pytest.approx(rates["0.01"]))]
    assert ("roc" in read_events(board).Tags()["images"]) == HAS_MATPLOTLIB
    assert (tmp_path / "out/roc.png").exists() == HAS_MATPLOTLIB


def test_another_evaluation_leaves_no_curves_of_the_first(files, tmp_path):
    line = [*files, "--output", str(tmp_path / "out")]
    assert main([*line, "--roc"]) == 0
    assert (tmp_path / "out/roc.png").exists() == HAS_MATPLOTLIB
    assert main(line) == 0
    assert not (tmp_path / "out/roc.png").exists()
    assert (tmp_path / "out/cmc.png").exists() == HAS_MATPLOTLIB


def test_junk_among_the_queries_has_no_match(files, tmp_path, capsys, caplog):
    query, gallery = load(files)
    for name, images, junk in (("query", query, slice(0, 4)), ("gallery", gallery, slice(0, 9))):
        images.identities[junk] = JUNK
        images.save(tmp_path / f"{name}.npz")
    (cell,) = run_json(capsys, *files)
    assert (cell["queries"], cell["valid_queries"]) == (30, 26)
    assert "4 of 30 queries are ignored" in caplog.text
    query.select(np.arange(4)).save(tmp_path / "query.npz")
    assert main(files) == 2
    assert "query.npz: no query has a gallery image of its identity" in capsys.readouterr().err


def test_a_network_embeds_the_boxes_of_market1501(tmp_path, capsys):
    people = SyntheticPeople(
        train_identities=1, test_identities=4, images_per_identity=6, cameras=2, height=HEIGHT, width=WIDTH
    )
    data = tmp_path / "people"
    write_synthetic_people(data, people)
    write_checkpoint(tmp_path / "net/checkpoints/best.pt", small_network(0))
    line = [f"--checkpoint={tmp_path / 'net'}", f"--data={data}", *ON_CPU]
    (single,) = run_json(capsys, *line)
    boxes = sorted((data / "bounding_box_test").glob("*.jpg"))
    (data / "gt_bbox").mkdir()
    for path in boxes:
        shutil.copy(path, data / "gt_bbox")
    (cell,) = run_json(capsys, *line, "--multi-query", "mean", "--output", str(tmp_path / "out"))
    split = read_market1501(data)
    assert cell["queries"] == single["queries"] == len(split.query)

    saved = tmp_path / "out/net/people"
    images, gallery = (FeatureSet.load(saved / f"{part}.npz") for part in ("query", "gallery"))
    sightings = set(zip(split.query.identities, split.query.cameras, strict=True))
    names = [Path(path).name for path in split.gallery.paths]
    wanted = [
        name
        for name, *sighting in zip(names, split.gallery.identities, split.gallery.cameras, strict=True)
        if tuple(sighting) in sightings
    ]
    assert [Path(path).name for path in images.paths if "gt_bbox" in path] == wanted
    network = autoreid.load(tmp_path / "net")
    np.testing.assert_allclose(images.features, network(images.paths.tolist()), rtol=1e-4, atol=1e-5)
    merged = merge_queries(images, "mean", "euclidean")
    numbers = numbers_of(merged, gallery)
    assert_same(cell, evaluate_retrieval(merged.features, gallery.features, *numbers, ranks=RANKS))
    again = ["--query", str(saved / "query.npz"), "--gallery", str(saved / "gallery.npz"), "--device", "cpu"]
    (same,) = run_json(capsys, *again, "--multi-query", "mean")
    assert same["map"] == pytest.approx(cell["map"], abs=1e-12)


def test_contradictions_are_told_in_one_line(files, capsys):
    cases = {
        "--query-expansion 0: must be at least 1": ["--query-expansion", "0"],
        "--query-expansion-alpha -1.0: must be a finite number of at least 0": [
            "--query-expansion",
            "2",
            "--query-expansion-alpha",
            "-1",
        ],
        "--query-expansion-alpha inf: must be a finite number of at least 0": [
            "--query-expansion",
            "2",
            "--query-expansion-alpha",
            "inf",
        ],
        "--query-expansion-alpha: requires --query-expansion": ["--query-expansion-alpha", "2"],
        "--keep-same-camera must not be given": ["--multi-query", "mean", "--keep-same-camera"],
        "gallery.npz: has 60 gallery images; --query-expansion 60 needs more than 60": [
            "--query-expansion",
            "60",
        ],
    }
    for message, options in cases.items():
        assert main([*files, *options]) == 2
        complaint = capsys.readouterr().err
        assert message in complaint
        assert complaint.count("\n") == 1
