from __future__ import annotations

import importlib.util
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import autoreid
from autoreid.commands.evaluate import evaluate
from autoreid.commands.trained_network import TrainedNetwork
from autoreid.config import SyntheticPeople, Training
from autoreid.data.datasets.market1501 import read_market1501
from autoreid.data.images import Images
from autoreid.data.synthetic.people import write_synthetic_people
from autoreid.data.transforms import normalise
from autoreid.errors import DataError
from autoreid.evaluate import main, parse
from autoreid.evaluation import evaluate_distances, evaluate_retrieval
from autoreid.evaluation.comparison import Comparison
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.reranking import rerank
from autoreid.named_paths import named_paths
from autoreid.reporting.activation_maps import draw_activation_maps
from autoreid.reporting.evaluation_report import TableCell, as_table
from autoreid.slurm.evaluation import main as submit
from autoreid.spaces.build import build_model
from tests.helpers import miniatures
from tests.helpers.events import points, read_events
from tests.helpers.features import random_features
from tests.helpers.ranks import run_ranks
from tests.helpers.trained import HEIGHT, WIDTH, lively_network, write_checkpoint

RANKS = range(1, 21)
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
ON_CPU = ["--device", "cpu", "--workers", "0", "--batch-size", "7"]


@pytest.fixture(scope="module")
def world_of(tmp_path_factory):
    """Two data sets of different people, and two trained networks."""
    folder = tmp_path_factory.mktemp("evaluate")
    for domain in (0, 1):
        people = SyntheticPeople(
            train_identities=1,
            test_identities=4,
            images_per_identity=5,
            cameras=2,
            distractors=2,
            junk=1,
            height=HEIGHT,
            width=WIDTH,
            domain=domain,
        )
        write_synthetic_people(folder / f"people{domain}", people)
    paths = read_market1501(folder / "people0").gallery.paths
    pixels = map(Images(HEIGHT, WIDTH), paths)
    images = normalise(torch.from_numpy(np.stack(list(pixels))))
    for seed in (0, 1):
        write_checkpoint(folder / f"net{seed}" / "checkpoints/best.pt", lively_network(seed, images))
    return folder


def by_hand(model, data, metric, flip=False):
    """Return the result and features of a data set, embedding one image at a time."""

    def embed(path):
        with Image.open(path) as file:
            picture = file.convert("RGB")
            feature = model(picture)[0]
            if not flip:
                return feature
            # The files have the network's input size, so nothing is resized.
            return (feature + model(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))[0]) / 2

    query, gallery = (
        torch.stack([embed(path) for path in split.paths]) for split in (data.query, data.gallery)
    )
    numbers = [data.query.identities, data.gallery.identities, data.query.cameras, data.gallery.cameras]
    return evaluate_retrieval(query, gallery, *numbers, metric=metric, ranks=RANKS), query, gallery


def run_json(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["results"]


def assert_same(cell, result):
    assert cell["map"] == pytest.approx(result.map, abs=1e-9)
    assert cell["minp"] == pytest.approx(result.minp, abs=1e-9)
    assert cell["cmc"] == {str(rank): pytest.approx(value) for rank, value in result.cmc.items()}
    assert (cell["queries"], cell["valid_queries"]) == (result.queries, result.valid_queries)


@pytest.mark.parametrize("options", [[], ["--flip"], ["--metric", "cosine"]])
def test_the_cross_domain_table_is_that_of_single_images(world_of, capsys, options):
    sources = {"net0": world_of / "net0", "other": world_of / "net1" / "checkpoints" / "best.pt"}
    targets = {"people0": world_of / "people0", "b": world_of / "people1"}
    arguments = ["--checkpoint", str(sources["net0"]), "--checkpoint", f"other={sources['other']}"]
    arguments += ["--data", str(targets["people0"]), "--data", f"b={targets['b']}", *options, *ON_CPU]
    cells = run_json(capsys, *arguments)
    assert [(cell["source"], cell["target"]) for cell in cells] == [(s, t) for s in sources for t in targets]
    for cell in cells:
        metric = "cosine" if "--metric" in options else "euclidean"
        model, data = autoreid.load(sources[cell["source"]]), read_market1501(targets[cell["target"]])
        assert_same(cell, by_hand(model, data, metric, "--flip" in options)[0])
        assert (cell["metric"], cell["flip"]) == (metric, "--flip" in options)
    assert len({cell["map"] for cell in cells}) == 4


def test_the_output_folder_holds_figures_features_pictures_and_events(world_of, tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = ["--checkpoint", str(world_of / "net0"), "--data", str(world_of / "people0"), *ON_CPU]
    assert main([*arguments, "--output", str(folder), "--rows", "3"]) == 0
    table = capsys.readouterr().out
    model, data = autoreid.load(world_of / "net0"), read_market1501(world_of / "people0")
    result, *features = by_hand(model, data, "euclidean")

    saved = json.loads((folder / "result.json").read_text())["results"]
    assert len(saved) == 1
    assert_same(saved[0], result)
    assert f"{100 * result.map:.1f} / {100 * result.cmc[1]:.1f}" in table

    cell = folder / "net0" / "people0"
    for part, split, expected in zip(("query", "gallery"), (data.query, data.gallery), features, strict=True):
        loaded = FeatureSet.load(cell / f"{part}.npz")
        np.testing.assert_allclose(loaded.features, expected, rtol=1e-4, atol=1e-5)
        assert loaded.paths.tolist() == split.paths.tolist()
        assert loaded.identities.tolist() == split.identities.tolist()

    hardest = np.argsort(result.average_precision, kind="stable")[:3]
    images = [
        normalise(torch.from_numpy(Images(HEIGHT, WIDTH)(data.query.paths[number])[None]))[0]
        for number in hardest
    ]
    maps = np.asarray(draw_activation_maps(model.network, torch.stack(images)))
    with Image.open(cell / "activation_maps.png") as file:
        np.testing.assert_allclose(np.asarray(file).astype(int), maps.astype(int), atol=2)

    events = read_events(folder / "tensorboard")
    assert points(folder / "tensorboard", "map/net0/people0") == [(0, pytest.approx(result.map))]
    curve = points(folder / "tensorboard", "cmc/net0/people0")
    assert curve == [(rank, pytest.approx(result.cmc[rank])) for rank in RANKS]
    pictures = {
        **({"cmc": folder / "cmc.png"} if HAS_MATPLOTLIB else {}),
        "ranked_lists/net0/people0": cell / "ranked_lists.png",
        "activation_maps/net0/people0": cell / "activation_maps.png",
    }
    assert set(events.Tags()["images"]) == set(pictures)
    for tag, path in pictures.items():
        shown = Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string))
        with Image.open(path) as file:
            assert np.array_equal(np.asarray(shown), np.asarray(file))


@pytest.mark.slow
def test_weights_of_another_program_are_measured_beside_a_training(world_of, tmp_path, capsys, caplog):
    torch.manual_seed(5)
    state = build_model("osnet_x0_25", 9).state_dict()
    torch.save({"model": {f"backbone.{key}": value for key, value in state.items()}}, tmp_path / "osnet.pth")
    rows = run_json(
        capsys,
        *("--checkpoint", f"theirs={tmp_path / 'osnet.pth'}", "--checkpoint", f"ours={world_of / 'net0'}"),
        *("--model", "osnet_x0_25", "--size", f"{HEIGHT}x{WIDTH}", "--data", str(world_of / "people0")),
        *("--output", str(tmp_path / "out"), *ON_CPU),
    )
    model = autoreid.load(tmp_path / "osnet.pth", model="osnet_x0_25", size=(HEIGHT, WIDTH))
    result, *_ = by_hand(model, read_market1501(world_of / "people0"), "euclidean")
    assert [row["source"] for row in rows] == ["theirs", "ours"]
    assert rows[0]["map"] == pytest.approx(result.map)
    weights = json.loads((tmp_path / "out/environment.json").read_text())["weights"]
    assert weights.keys() == {"theirs"}
    assert (weights["theirs"]["place"], weights["theirs"]["loaded"]) == ("model: backbone.", len(state) - 2)
    assert [record for record in caplog.messages if "osnet.pth (model: backbone.): " in record]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_of_chosen_queries_are_those_of_the_formula(metric):
    rng = np.random.default_rng(0)
    query, gallery = (
        FeatureSet(rng.normal(size=(N, 6)).astype(np.float32), np.arange(N), np.arange(N), np.full(N, ""))
        for N in (12, 40)
    )
    comparison = Comparison(query, gallery, metric, False, torch.device("cpu"))
    chosen = np.array([7, 0, 11])
    q, g = query.features[chosen, None].astype(np.float64), gallery.features[None].astype(np.float64)
    if metric == "euclidean":
        expected = ((q - g) ** 2).sum(2)
    else:
        expected = 1 - (q * g).sum(2) / np.linalg.norm(q, axis=2) / np.linalg.norm(g, axis=2)
    np.testing.assert_allclose(comparison.distances(chosen), expected, rtol=1e-4, atol=1e-5)
    assert comparison.squared == (metric == "euclidean")


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_reranked_lists_and_figures_are_those_of_the_whole_matrix(metric):
    rng = np.random.default_rng(0)
    query, gallery = (random_features(rng, count) for count in (12, 40))
    comparison = Comparison(query, gallery, metric, True, torch.device("cpu"))
    (matrix,) = (block.numpy() for block in rerank(query.features, gallery.features, metric=metric))
    numbers = [query.identities, gallery.identities, query.cameras, gallery.cameras]
    assert comparison.evaluate(RANKS) == evaluate_distances(matrix, *numbers, ranks=RANKS)
    chosen = np.array([7, 0, 11])
    np.testing.assert_array_equal(comparison.distances(chosen), matrix[chosen])


def test_reranking_on_the_command_line(world_of, tmp_path, capsys):
    arguments = ["--checkpoint", str(world_of / "net0"), "--data", str(world_of / "people0"), *ON_CPU]
    (cell,) = run_json(capsys, *arguments, "--rerank", "--output", str(tmp_path / "out"))
    saved = tmp_path / "out" / "net0" / "people0"
    query, gallery = (FeatureSet.load(saved / f"{part}.npz") for part in ("query", "gallery"))
    numbers = [query.identities, gallery.identities, query.cameras, gallery.cameras]
    (matrix,) = rerank(query.features, gallery.features)  # a single block
    assert_same(cell, evaluate_distances(matrix, *numbers, ranks=RANKS))
    assert cell["rerank"] is True
    assert (saved / "ranked_lists.png").exists()


def write_features(folder):
    """Write feature files in which query 0 has its match at rank 2, query 1 at rank 1, and query 2 has none."""
    query = {"features": [[0.0], [10.0], [20.0]], "identities": [1, 2, 3], "cameras": [1, 1, 1]}
    gallery = {"features": [[1.0], [2.0], [10.5]], "identities": [7, 1, 2], "cameras": [2, 2, 2]}
    for name, arrays in (("query", query), ("gallery", gallery)):
        np.savez(folder / f"{name}.npz", **{key: np.array(array) for key, array in arrays.items()})
    return ["--query", str(folder / "query.npz"), "--gallery", str(folder / "gallery.npz"), "--device", "cpu"]


def test_bare_feature_files_of_another_system_are_ranked(tmp_path, capsys):
    (cell,) = run_json(capsys, *write_features(tmp_path))
    assert cell["map"] == pytest.approx((1 / 2 + 1) / 2)
    assert (cell["cmc"]["1"], cell["cmc"]["2"]) == (0.5, 1.0)
    assert (cell["source"], cell["target"], cell["metric"]) == ("query", "gallery", "euclidean")
    assert (cell["queries"], cell["valid_queries"]) == (3, 2)


def test_features_without_images_give_all_but_the_ranked_lists(tmp_path, capsys, caplog):
    folder = tmp_path / "out"
    assert main([*write_features(tmp_path), "--output", str(folder)]) == 0
    assert "cannot draw ranked lists" in caplog.text
    assert "1 of 3 queries have no match" in capsys.readouterr().out
    assert (folder / "result.json").exists()
    assert (folder / "cmc.png").exists() == HAS_MATPLOTLIB
    assert not list(folder.rglob("ranked_lists.png"))


@pytest.mark.slow
def test_saved_features_evaluate_to_what_their_network_did(world_of, tmp_path, capsys):
    arguments = ["--checkpoint", str(world_of / "net0"), "--data", str(world_of / "people0"), *ON_CPU]
    (network,) = run_json(capsys, *arguments, "--output", str(tmp_path / "first"))
    saved = tmp_path / "first" / "net0" / "people0"
    files = ["--query", str(saved / "query.npz"), "--gallery", str(saved / "gallery.npz"), "--device", "cpu"]
    (again,) = run_json(capsys, *files, "--output", str(tmp_path / "second"))
    assert network.pop("precision") == Training().precision
    assert {**again, "source": "net0", "target": "people0"} == network
    lists = [path.read_bytes() for path in tmp_path.rglob("ranked_lists.png")]
    assert len(lists) == 2


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_in_its_own_precision_or_in_another(world_of, tmp_path, capsys):
    network = autoreid.load(world_of / "net0").network
    training = {"precision": "bfloat16", "channels_last": True}
    path = write_checkpoint(tmp_path / "rough" / "checkpoints/best.pt", network, training=training)
    data = world_of / "people0"
    images = [Image.open(path) for path in read_market1501(data).query.paths]
    line = ["--checkpoint", str(path), "--data", str(data), *ON_CPU]
    features = {}
    for options, precision in (([], "bfloat16"), (["--precision", "float32"], "float32")):
        out = tmp_path / precision
        (cell,) = run_json(capsys, *line, *options, "--output", str(out))
        assert cell["precision"] == precision
        assert json.loads((out / "result.json").read_text())["results"][0]["precision"] == precision
        features[precision] = FeatureSet.load(out / "rough" / "people0" / "query.npz").features
        expected = autoreid.load(path, precision=precision)(images, batch_size=7)
        np.testing.assert_allclose(features[precision], expected, rtol=1e-3, atol=1e-3)
    assert not np.allclose(*features.values(), rtol=1e-3, atol=1e-3)
    assert main(line) == 0
    assert "rough: computed in bfloat16" in capsys.readouterr().out.splitlines()


def evaluate_on_rank(world, arguments):
    return evaluate(parse(arguments), world)


@pytest.mark.slow
def test_ranks_share_the_work_and_hold_the_same_table(world_of, tmp_path):
    arguments = ["--checkpoint", str(world_of / "net0"), "--data", str(world_of / "people0"), *ON_CPU]
    result, *_ = by_hand(autoreid.load(world_of / "net0"), read_market1501(world_of / "people0"), "euclidean")
    for (cell,) in run_ranks(evaluate_on_rank, 2, [*arguments, "--output", str(tmp_path / "out")]):
        assert cell.result == result
    assert (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize("reason", ["too few images", "no match"])
def test_a_data_set_that_cannot_be_evaluated_is_reported_by_rank_0(world_of, tmp_path, reason):
    data, options = world_of / "people0", ["--query-expansion", "500"]
    if reason == "no match":
        data, options = write_own(tmp_path / "own", ONE_CAMERA), []
    line = ["--checkpoint", str(world_of / "net0"), "--data", str(data), *options, *ON_CPU]
    errors = run_ranks(evaluate_on_rank, 2, line, raises=False)
    assert [(type(error), error.is_reported) for error in errors] == [(DataError, False), (DataError, True)]


def test_an_error_of_rank_0_reaches_every_rank(world_of, tmp_path):
    (tmp_path / "config.yaml").touch()
    arguments = ["--checkpoint", str(world_of / "net0"), "--data", str(world_of / "people0"), *ON_CPU]
    errors = run_ranks(evaluate_on_rank, 2, [*arguments, "--output", str(tmp_path)], raises=False)
    assert ["holds a run" in str(error) for error in errors] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --checkpoint with --data, or --query with --gallery"),
        (["--checkpoint", "x"], "give either"),
        (["--query", "q.npz"], "give either"),
        (["--checkpoint", "x", "--data", "y", "--query", "q.npz", "--gallery", "g.npz"], "give either"),
        (["--query", "q.npz", "--gallery", "g.npz"], "q.npz: cannot read the features"),
        (["--query", "q.npz", "--gallery", "g.npz", "--flip"], "--flip"),
        (
            ["--query", "q.npz", "--gallery", "g.npz", "--precision", "tf32"],
            "--precision: requires --checkpoint",
        ),
        (["--query", "q.npz", "--gallery", "g.npz", "--rows", "0"], "--rows 0: must be at least 1"),
        (["--checkpoint", "a=x/y", "--data", "z"], "--checkpoint a=x/y: no such file or folder: x/y"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


def test_a_named_path_may_begin_with_the_home_folder(world_of, monkeypatch):
    """A shell expands ~/x, but not name=~/x."""
    monkeypatch.setenv("HOME", str(world_of))
    assert named_paths("--data", ["ours=~/net0"]) == {"ours": world_of / "net0"}
    assert named_paths("--data", ["$HOME/net0"]) == {"net0": world_of / "net0"}


def test_wrong_inputs_are_one_line_and_status_2(world_of, tmp_path, capsys):
    network, people = str(world_of / "net0"), str(world_of / "people0")
    cases = {
        "the name net0 is already used; give a unique NAME=PATH": ["--checkpoint", network] * 2
        + ["--data", people],
        "unknown layout; expected bounding_box_train": ["--checkpoint", network, "--data", str(tmp_path)],
        "holds a run": ["--checkpoint", network, "--data", people, "--output", str(world_of / "net0")],
        "features have 2 dimensions, but those in": write_features(tmp_path),
    }
    (world_of / "net0" / "config.yaml").touch()
    np.savez(
        tmp_path / "gallery.npz",
        features=np.zeros((1, 2)),
        identities=np.ones(1, int),
        cameras=np.ones(1, int),
    )
    for message, arguments in cases.items():
        assert main(arguments) == 2
        complaint = capsys.readouterr().err
        assert message in complaint
        assert complaint.count("\n") == 1


def test_an_empty_feature_file_is_named(tmp_path, capsys):
    write_features(tmp_path)
    np.savez(
        tmp_path / "none.npz",
        features=np.zeros((0, 2)),
        identities=np.zeros(0, int),
        cameras=np.zeros(0, int),
    )
    full, empty = (str(tmp_path / name) for name in ("query.npz", "none.npz"))
    for query, gallery in ((full, empty), (empty, full)):
        assert main(["--query", query, "--gallery", gallery]) == 2
        assert capsys.readouterr().err == f"autoreid: {empty}: contains the features of no image\n"


def write_own(folder, rows):
    """A data set with images.csv; rows are (file, identity, camera, split)."""
    folder.mkdir()
    rng = np.random.default_rng(len(folder.name))
    for name in {row[0] for row in rows}:
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(folder / name)
    lines = ["path,identity,camera,split", *(",".join(map(str, row)) for row in rows)]
    (folder / "images.csv").write_text("\n".join(lines))
    return folder


ONE_CAMERA = [(f"{n}.png", n // 3, 1, split) for n in range(9) for split in ("query", "gallery")]


def test_targets_are_checked_before_anything_is_computed(world_of, tmp_path, capsys, monkeypatch):
    """With the words and the exit status of a training."""
    monkeypatch.setattr(TrainedNetwork, "load", None)
    miniatures.cuhk_sysu(tmp_path / "cuhk_sysu")
    shop = write_own(tmp_path / "shop", ONE_CAMERA)
    write_own(tmp_path / "queries", [row for row in ONE_CAMERA if row[3] == "query"])
    (tmp_path / "people.zip").write_bytes(b"PK")
    cases = {
        "cuhk_sysu": "cuhk_sysu: has no queries, so it cannot be evaluated; choose another data set",
        "queries": "queries: has no gallery images, so it cannot be evaluated",
        "shop": "shop: no query has a gallery image of its identity from another camera; if people are seen by one",
        "shop/images.csv": f"images.csv: is a list; give the folder that it describes, {shop}",
        "people.zip": "people.zip: is a file; expected the folder of a data set; scripts/prepare_dataset.py makes",
        "people": "no such file or folder",
    }
    for name, message in cases.items():
        arguments = ["--checkpoint", str(world_of / "net0"), "--data", str(world_of / "people0")]
        assert main([*arguments, "--data", str(tmp_path / name), *ON_CPU]) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.out == ""


def test_checkpoints_are_checked_before_anything_is_computed(world_of, tmp_path, capsys):
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1")
    torch.save({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    (tmp_path / "search").mkdir()
    cases = {
        "pointer.pth": "pointer.pth: this is a Git LFS pointer, not the weights",
        "other.pth": "other.pth: not a checkpoint of python -m autoreid.train",
        "search": "search: not the folder of a trained run: it contains no checkpoints/best.pt",
    }
    for name, message in cases.items():
        checkpoints = [f"--checkpoint={world_of / 'net0'}", f"--checkpoint={tmp_path / name}"]
        assert main([*checkpoints, f"--data={world_of / 'people0'}", *ON_CPU]) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == "", "the first checkpoint was evaluated"


def test_one_camera_is_evaluated_with_the_option(world_of, tmp_path, capsys):
    """As if each image had a camera of its own: an image is its own match in neither case."""
    shop = write_own(tmp_path / "shop", ONE_CAMERA)
    line = ["--checkpoint", str(world_of / "net0"), *ON_CPU]
    (kept,) = run_json(
        capsys, *line, "--data", str(shop), "--keep-same-camera", "--output", str(tmp_path / "out")
    )
    write_own(tmp_path / "also", [(name, who, name, split) for name, who, _, split in ONE_CAMERA])
    for path in shop.glob("*.png"):
        (tmp_path / "also" / path.name).write_bytes(path.read_bytes())
    (apart,) = run_json(capsys, *line, "--data", str(tmp_path / "also"))
    assert (kept["keep_same_camera"], apart["keep_same_camera"]) == (True, False)
    assert (kept["queries"], kept["valid_queries"]) == (9, 9)
    for figure in ("map", "cmc", "minp"):
        assert kept[figure] == apart[figure]
    assert kept["map"] < 1
    files = [f"--{part}={tmp_path / 'out/net0/shop' / part}.npz" for part in ("query", "gallery")]
    assert main([*files, "--device", "cpu", "--keep-same-camera"]) == 0
    assert "not comparable with published results" in capsys.readouterr().out
    assert main([*files, "--device", "cpu"]) == 2
    assert (
        "query.npz: no query has a gallery image of its identity from another camera; if"
        in capsys.readouterr().err
    )


def test_a_target_that_fails_does_not_lose_the_others(world_of, tmp_path, capsys):
    shutil.copytree(world_of / "people0", tmp_path / "broken")
    broken = read_market1501(tmp_path / "broken").gallery.paths[0]
    Path(broken).write_bytes(b"")
    line = [
        f"--checkpoint={world_of / 'net0'}",
        f"--data={tmp_path / 'broken'}",
        f"--data={world_of / 'people1'}",
    ]
    assert main([*line, f"--output={tmp_path / 'out'}", *ON_CPU]) == 2
    printed = capsys.readouterr()
    assert (
        f"net0 on broken: {broken}: cannot read this image: the file is empty; --on-broken-image skip leaves"
        in printed.err
    )
    (saved,) = json.loads((tmp_path / "out/result.json").read_text())["results"]
    assert saved["target"] == "people1"
    expected = by_hand(autoreid.load(world_of / "net0"), read_market1501(world_of / "people1"), "euclidean")[
        0
    ]
    assert_same(saved, expected)
    assert f"{100 * expected.map:.1f} / " in printed.out


def test_broken_images_can_be_left_out(world_of, tmp_path, capsys, caplog):
    shutil.copytree(world_of / "people0", tmp_path / "broken")
    data = read_market1501(tmp_path / "broken")
    for path in (data.gallery.paths[0], data.query.paths[0]):
        Path(path).write_bytes(b"")
    line = [f"--checkpoint={world_of / 'net0'}", f"--data={tmp_path / 'broken'}", *ON_CPU]
    (cell,) = run_json(capsys, *line, "--on-broken-image", "skip")
    rest = replace(data, query=data.query.select(slice(1, None)), gallery=data.gallery.select(slice(1, None)))
    assert_same(cell, by_hand(autoreid.load(world_of / "net0"), rest, "euclidean")[0])
    assert sum("skipped: " in message for message in caplog.messages) == 2


def test_images_that_a_network_was_trained_on_are_told(world_of, tmp_path, capsys, caplog):
    checkpoint = torch.load(world_of / "net0/checkpoints/best.pt", weights_only=True)
    checkpoint["config"] = checkpoint["config"].replace("root: nowhere", f"root: {tmp_path / 'data'}")
    torch.save(checkpoint, tmp_path / "net.pt")
    shutil.copytree(world_of / "people0", tmp_path / "data/market1501")
    shutil.copytree(world_of / "people0", tmp_path / "leaky")
    trained = read_market1501(tmp_path / "data/market1501").train.paths[0]
    query = read_market1501(tmp_path / "leaky").query.paths[1]
    shutil.copy(trained, query)
    for name, expected in (("leaky", [True]), ("data/market1501", [])):
        caplog.clear()
        run_json(capsys, f"--checkpoint={tmp_path / 'net.pt'}", f"--data={tmp_path / name}", *ON_CPU)
        told = [message for message in caplog.messages if "also trained on" in message]
        assert [f"such as {query}, which is the same image as {trained}" in one for one in told] == expected


def test_a_job_is_refused_for_the_reasons_of_an_evaluation(world_of, tmp_path):
    shop = write_own(tmp_path / "shop", ONE_CAMERA)
    line = [
        "--gpus",
        "0",
        "--dry-run",
        "--",
        "--checkpoint",
        str(world_of / "net0"),
        "--output",
        str(tmp_path / "o"),
    ]
    with pytest.raises(
        DataError, match="shop: no query has a gallery image of its identity from another camera"
    ):
        submit([*line, "--data", str(shop)])
    assert submit([*line, "--data", str(shop), "--keep-same-camera"]) == 0


def test_a_cell_that_failed_is_shown_as_such():
    query = torch.eye(4)
    numbers = [torch.arange(4), torch.arange(4), torch.zeros(4), torch.ones(4)]
    perfect = evaluate_retrieval(query, query, *numbers)
    cells = [TableCell("ours", "market", {}, perfect), TableCell("theirs", "duke", {}, perfect)]
    assert [line.split()[-3:] for line in as_table(cells).splitlines()[1:]] == [
        ["/", "100.0", "failed"],
        ["100.0", "/", "100.0"],
    ]


def test_the_table_has_a_row_a_source_and_a_column_a_target():
    query = torch.eye(4)
    numbers = [torch.arange(4), torch.arange(4), torch.zeros(4), torch.ones(4)]
    perfect = evaluate_retrieval(query, query, *numbers)
    worst = evaluate_retrieval(query, -query, *numbers)
    cells = [TableCell("ours", "market", {}, perfect), TableCell("ours", "duke", {}, worst)]
    cells += [TableCell("resnet50", "market", {}, worst), TableCell("resnet50", "duke", {}, perfect)]
    assert as_table(cells).splitlines() == [
        "mAP / rank-1 in %  market         duke",
        "ours               100.0 / 100.0  25.0 / 0.0",
        "resnet50           25.0 / 0.0     100.0 / 100.0",
    ]
