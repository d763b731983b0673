"""Every reader on a miniature of its data set, and the published split rules at full size."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoreid.data.datasets import BENCHMARKS, read_dataset, read_folder
from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.records import DISTRACTOR, ReidDataset, Split, combine
from autoreid.errors import ConfigError, DataError
from autoreid.evaluation import evaluate_retrieval
from tests.helpers import miniatures
from tests.helpers.miniatures import MINIATURES

SPLITS = ("train", "query", "gallery")
#: The splits of these data sets are computed by the reader.
DIVIDED = ("viper", "grid", "vehicleid_800")


def folder_of(name: str) -> str:
    return BENCHMARKS[name].folders[0]


def records(dataset, folder):
    """(split, path below the folder, identity, camera) of every image."""
    return [
        (name, str(Path(path).relative_to(folder)), identity, camera)
        for name in SPLITS
        for split in [getattr(dataset, name)]
        for path, identity, camera in zip(
            split.paths, split.identities.tolist(), split.cameras.tolist(), strict=True
        )
    ]


def assert_same_people(found, rows):
    """Check that images and splits are the same, and identities and cameras up to naming."""
    assert sorted(row[:2] for row in found) == sorted((row.split, row.path) for row in rows)
    by_path = {(row.split, row.path): row for row in rows}
    people, cameras = set(), set()
    for split, path, identity, camera in found:
        row = by_path[split, path]
        if row.person == miniatures.DISTRACTOR:
            assert identity == DISTRACTOR
        else:
            assert identity > 0
            people.add((row.person, identity))
        cameras.add((row.camera, camera))
    for pairs in (people, cameras):
        assert len(pairs) == len({name for name, _ in pairs}) == len({number for _, number in pairs})


@pytest.mark.parametrize("name", [name for name in MINIATURES if name not in DIVIDED])
def test_a_reader_finds_what_its_miniature_holds(tmp_path, name):
    folder = tmp_path / folder_of(name)
    rows = [row for row in MINIATURES[name](folder) if row.split != "none"]
    dataset = read_dataset(tmp_path, name)
    assert dataset.name == name
    assert_same_people(records(dataset, folder), rows)
    (note,) = dataset.notes
    published = BENCHMARKS[name].published["train"].images
    assert f"{len(dataset.train)} train images, not {published:,}" in note


@pytest.mark.parametrize("name", ["viper", "grid"])
def test_each_split_divides_the_same_images(tmp_path, name):
    folder = tmp_path / folder_of(name)
    rows = {row.path: row for row in MINIATURES[name](folder)}
    halves = set()
    for benchmark in [name, *(f"{name}_{split}" for split in range(1, 10))]:
        dataset = read_dataset(tmp_path, benchmark)
        trained = {rows[path].person for split, path, *_ in records(dataset, folder) if split == "train"}
        expected = []
        for row in rows.values():
            is_query = "cam_a" in row.path or "probe" in row.path
            split = "train" if row.person in trained else "query" if is_query else "gallery"
            expected.append(row._replace(split=split))
        assert_same_people(records(dataset, folder), expected)
        assert len(trained) == 3
        halves.add(frozenset(trained))
    assert len(halves) > 1


def test_viper_at_its_true_size_has_ten_random_halves(tmp_path):
    miniatures.viper(tmp_path / "viper", people=632)
    chosen = []
    for split in range(10):
        dataset = read_dataset(tmp_path, f"viper_{split}" if split else "viper")
        assert dataset.notes == ()
        half = set(dataset.train.identities.tolist())
        assert len(half) == 316
        assert half.isdisjoint(dataset.query.identities.tolist())
        assert set(dataset.query.identities.tolist()) == set(dataset.gallery.identities.tolist())
        chosen.append(half)
    # Computed once; the splits must never change.
    assert sorted(chosen[0])[:8] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert sorted(chosen[9])[:8] == [3, 5, 7, 8, 10, 14, 16, 18]
    shared = [len(one & other) for one in chosen for other in chosen if one is not other]
    # Hypergeometric: mean 158, standard deviation 6.3.
    assert 125 < min(shared) <= max(shared) < 191


def test_grid_at_its_true_size_follows_its_partitions(tmp_path):
    miniatures.grid(tmp_path / "grid", people=250, strangers=775)
    for split in (0, 7):
        dataset = read_dataset(tmp_path, f"grid_{split}" if split else "grid")
        expected = miniatures.grid_training_people(250, split)
        np.testing.assert_array_equal(np.unique(dataset.train.identities), expected)
        assert np.count_nonzero(dataset.gallery.identities == DISTRACTOR) == 775
        assert dataset.notes == ()


def test_vehicleid_has_one_random_image_of_each_vehicle_in_its_gallery(tmp_path):
    rows = {row.path: row for row in miniatures.vehicleid(tmp_path / "VehicleID", vehicles=200)}
    galleries = []
    for choice in range(10):
        dataset = read_dataset(tmp_path, f"vehicleid_800_{choice}" if choice else "vehicleid_800")
        found = records(dataset, tmp_path / "VehicleID")
        assert {path for _, path, *_ in found} == {*rows}
        assert all((rows[path].split == "train") == (split == "train") for split, path, *_ in found)
        expected = [rows[path]._replace(split=split, camera=split == "gallery") for split, path, *_ in found]
        assert_same_people(found, expected)
        assert dataset.gallery.num_identities == len(dataset.gallery) == 200
        assert len(dataset.query) == 400
        assert "400 query images, not 5,693" in dataset.notes[0]
        galleries.append({*dataset.gallery.paths})
    # Of three images, any may be chosen: two galleries share a third of 200, with a standard deviation of 6.7.
    shared = [len(one & other) for one in galleries for other in galleries if one is not other]
    assert 40 < min(shared) <= max(shared) < 94


def test_a_query_of_vehicleid_has_one_match_and_no_gallery_image_is_removed(tmp_path):
    miniatures.vehicleid(tmp_path / "vehicleid", vehicles=30)
    dataset = read_dataset(tmp_path, "vehicleid_800_4")
    query, gallery = dataset.query, dataset.gallery
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((len(split), 4)).astype(np.float32) for split in (query, gallery)]
    result = evaluate_retrieval(
        *features, query.identities, gallery.identities, query.cameras, gallery.cameras
    )
    ranks = []
    for feature, identity in zip(features[0], query.identities, strict=True):
        order = np.argsort(np.square(features[1] - feature).sum(1))
        ranks.append(1 + int(np.flatnonzero(gallery.identities[order] == identity)[0]))
    assert result.valid_queries == result.queries == 60
    assert result.map == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert result.cmc[5] == pytest.approx(np.mean([rank <= 5 for rank in ranks]))


def of_size(name: str, counts: Counts) -> Split:
    """A split of the given size."""
    index = np.arange(counts.images)
    paths = np.array([f"{name}{number}" for number in index], dtype=object)
    return Split(name, paths, index % counts.identities + 1, index % (counts.cameras or 3))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_difference_from_the_published_size_is_told_with_both_numbers(name):
    benchmark = BENCHMARKS[name]
    sizes = {split: benchmark.published.get(split, Counts(1, 1)) for split in SPLITS}
    splits = {split: of_size(split, counts) for split, counts in sizes.items()}
    assert benchmark.differences(ReidDataset(name, **splits)) == []
    splits["train"] = splits["train"].select(np.arange(1, len(splits["train"])))
    images = sizes["train"].images
    assert f"{images - 1:,} train images, not {images:,}" in benchmark.differences(
        ReidDataset(name, **splits)
    )


def test_the_sizes_are_those_of_the_papers():
    """Several training sets combined, as in domain generalisation, and all test sets."""
    train = {name: benchmark.published["train"] for name, benchmark in BENCHMARKS.items()}
    assert sum(train[name].images for name in ("market1501", "dukemtmc", "msmt17", "cuhk_sysu")) == 96_653
    assert train["msmt17"] == (1_041, 30_248 + 2_373, 15)
    market = BENCHMARKS["market1501"].published
    assert market["gallery"].images == 19_732 - 3_819
    assert BENCHMARKS["market1501_500k"].published["gallery"].images - market["gallery"].images == 500_000
    for kind, images in (("labeled", 14_096), ("detected", 14_097)):
        assert sum(counts.images for counts in BENCHMARKS[f"cuhk03_{kind}"].published.values()) == images
    msmt = BENCHMARKS["msmt17"].published
    assert sum(counts.images for counts in msmt.values()) == 126_441
    assert msmt["train"].identities + msmt["gallery"].identities == 4_101


def test_sources_of_different_kinds_combine(tmp_path):
    for name in ("msmt17", "market1501", "cuhk_sysu"):
        MINIATURES[name](tmp_path / folder_of(name))
    datasets = [read_dataset(tmp_path, name) for name in ("msmt17", "market1501", "cuhk_sysu")]
    whole = combine([dataset.all_people() for dataset in datasets])
    # 3 + 3 people of MSMT17, 5 of Market-1501, 3 of CUHK-SYSU; 2, 4 and 1 cameras.
    assert whole.num_identities == 14
    assert len(np.unique(whole.cameras)) == 2 + 4 + 1
    assert 0 not in whole.identities


@pytest.mark.parametrize("folder", ["Market-1501-v15.09.15", "market1501", "people"])
def test_a_folder_is_read_by_its_name_or_its_layout(tmp_path, folder):
    rows = miniatures.market1501(tmp_path / folder, inside="")
    dataset = read_folder(tmp_path / folder, "m")
    assert dataset.name == "m"
    assert_same_people(records(dataset, tmp_path / folder), [row for row in rows if row.split != "none"])
    assert bool(dataset.notes) == (folder != "people"), "only published data sets have a published size"


def test_a_folder_of_two_data_sets_is_asked_about(tmp_path):
    miniatures.cuhk03_labeled(tmp_path / "cuhk03")
    with pytest.raises(DataError, match="name one, as in cuhk03_labeled="):
        read_folder(tmp_path / "cuhk03", "x")
    assert read_folder(tmp_path / "cuhk03", "cuhk03_detected").name == "cuhk03_detected"


def test_other_known_folder_names(tmp_path):
    miniatures.dukemtmc(tmp_path / "dukemtmc-reid")
    assert len(read_dataset(tmp_path, "dukemtmc").train) == 4
    with pytest.raises(
        DataError, match=re.escape(f"{tmp_path / 'viper'}: no such folder; expected the data")
    ):
        read_dataset(tmp_path, "viper")


@pytest.mark.parametrize(
    ("name", "removed", "message"),
    [
        ("market1501", "Market-1501-v15.09.15/query", "query: no such folder; expected the query images"),
        ("market1501_500k", "images", "images: no such folder; expected the 500 k distractors"),
        ("dukemtmc", "DukeMTMC-reID/bounding_box_test", "bounding_box_test: no such folder"),
        ("cuhk03_labeled", "cuhk03-np/labeled", "labeled: no such folder"),
        ("msmt17", "MSMT17_V1/test", "test: no such folder; expected images of MSMT17"),
        ("msmt17_v2", "MSMT17_V2/list_val.txt", "list_val.txt: cannot read the list"),
        ("viper", "VIPeR/cam_b", "cam_b: no such folder"),
        (
            "grid",
            "underground_reid/features_and_partitions.mat",
            "partitions.mat: cannot read the file: No such file",
        ),
        ("cuhk_sysu", "cropped_images", "cropped_images: no such folder; expected CUHK-SYSU's people"),
        ("veri776", "VeRi/image_query", "image_query: no such folder; expected the query images of VeRi-776"),
        (
            "vehicleid_800",
            "VehicleID/train_test_split/test_list_800.txt",
            "test_list_800.txt: cannot read the list",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path, name, removed, message):
    MINIATURES[name](tmp_path / folder_of(name))
    (tmp_path / folder_of(name) / removed).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read_dataset(tmp_path, name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("market1501", "Market-1501-v15.09.15/query/portrait.jpg"),
        ("viper", "VIPeR/cam_a/left.bmp"),
        ("grid", "underground_reid/probe/first.jpeg"),
        ("grid", "underground_reid/probe/0000_1_25004_107_32_106_221.jpeg"),
        ("cuhk_sysu", "cropped_images/s3_p5.jpg"),
        ("veri776", "VeRi/image_test/c003_0001.jpg"),
        ("veri776", "VeRi/image_query/0000_c003_00030600_0.jpg"),
    ],
)
def test_a_name_that_does_not_follow_the_layout_is_named(tmp_path, name, file):
    MINIATURES[name](tmp_path / folder_of(name))
    (tmp_path / folder_of(name) / file).touch()
    with pytest.raises(DataError, match=re.escape(str(tmp_path / folder_of(name) / file))):
        read_dataset(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "list_name", "line"),
    [
        *(
            ("msmt17", "MSMT17_V1/list_query.txt", line)
            for line in ("0000/0000_000_01_x.jpg", "../0000_000_01_x.jpg 0", "/a/0_0_1_x.jpg 0", "a b c")
        ),
        *(
            ("vehicleid_800", "VehicleID/train_test_split/train_list.txt", line)
            for line in ("0000001", "../1 2", "1 -1", "1 2 3")
        ),
    ],
)
def test_a_wrong_line_of_a_list_is_named(tmp_path, name, list_name, line):
    MINIATURES[name](tmp_path / folder_of(name))
    file = tmp_path / folder_of(name) / list_name
    number = len(file.read_text().splitlines()) + 1
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(DataError, match=re.escape(f"{file}:{number}: {line!r}")):
        read_dataset(tmp_path, name)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file, not at all", bytes(4000)])
def test_a_broken_matlab_file_is_named(tmp_path, content):
    MINIATURES["grid"](tmp_path / "grid")
    file = tmp_path / "grid/underground_reid/features_and_partitions.mat"
    file.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(file))):
        read_dataset(tmp_path, "grid")


def test_without_scipy_the_extra_is_named(tmp_path, monkeypatch):
    MINIATURES["grid"](tmp_path / "grid")
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'autoreid[mat]'")):
        read_dataset(tmp_path, "grid")


OWN = [
    ("train", "anna", "door"),
    ("train", "anna", "yard"),
    ("train", "Bo", "door"),
    ("query", "cy", "yard"),
    ("gallery", "cy", "door"),
    ("gallery", "distractor", "door"),
    ("gallery", "junk", "yard"),
]


def own_folders(folder: Path, layout: str) -> list[miniatures.Row]:
    """The people of OWN in one of the three layouts; without splits, only those for training."""
    made = miniatures.Miniature(folder)
    for split, person, camera in OWN:
        if layout == "people" and split != "train":
            continue
        path = f"{person}/{camera}/1.png" if layout == "people" else f"{split}/{person}/{camera}/1.png"
        made.add(split, f"pictures/{path}" if layout == "csv" else path, person, camera)
    if layout == "csv":
        with (folder / "images.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["split", "camera", "note", "identity", "path"])
            writer.writerows([row.split, row.camera, "a, b", row.person, row.path] for row in made.rows)
    return [row for row in made.rows if row.person != miniatures.JUNK]


@pytest.mark.parametrize("layout", ["csv", "splits", "people"])
def test_a_folder_of_ones_own(tmp_path, layout):
    rows = own_folders(tmp_path / "mine", layout)
    dataset = read_dataset(tmp_path, "mine")
    assert_same_people(records(dataset, tmp_path / "mine"), rows)
    assert dataset.notes == ()


def test_a_csv_without_splits_trains_on_everything(tmp_path):
    (tmp_path / "images.csv").write_text(
        "path,identity,camera\na.jpg,1,1\n/b/c.jpg,2,1\n", encoding="utf-8-sig"
    )
    dataset = read_folder(tmp_path, "x")
    assert dataset.train.paths.tolist() == [str(tmp_path / "a.jpg"), "/b/c.jpg"]
    assert len(dataset.query) == len(dataset.gallery) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,identity\na.jpg,1\n", ":1: no column camera"),
        ("", ":1: no column camera"),
        ("path,identity,camera\n", "contains no images"),
        ("path,identity,camera\na.jpg,1,1\nb.jpg,,1\n", ":3: empty identity"),
        ("path,identity,camera\na.jpg,1\n", ":2: empty camera"),
        (
            "path,identity,camera,split\na.jpg,1,1,tests\n",
            ":2: split 'tests': must be train (or val), query (or probe) or gallery (or test)",
        ),
        ("path,identity,camera,split\na.jpg,1,1\n", ":2: split ''"),
        ("path,identity,camera\na.jpg,1,1\n./a.jpg,2,1\n", ":3: duplicate of line 2: "),
        ("path,identity,camera,split\na.jpg,junk,1,query\n", "junk (-1) or a distractor"),
        ('path,identity,camera\n"a.jpg,1,1\n', "cannot read the list: unexpected end of data"),
        ("path,identity,camera\n\udce4.jpg,1,1\n", "cannot read the list"),
    ],
)
def test_a_wrong_csv_is_answered_with_file_and_line(tmp_path, text, message):
    (tmp_path / "images.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=re.escape(message)):
        read_folder(tmp_path, "x")


def test_a_folder_of_nothing_known_is_answered_with_what_would_be(tmp_path):
    with pytest.raises(DataError, match="unknown layout; expected bounding_box_train"):
        read_folder(tmp_path, "x")
    miniatures.Miniature(tmp_path).add("train", "anna/1.jpg", "anna", "")
    with pytest.raises(DataError, match="anna: contains no folder; expected one per camera"):
        read_folder(tmp_path, "x")
    (tmp_path / "anna/door").mkdir()
    (tmp_path / "anna/1.jpg").unlink()
    with pytest.raises(
        DataError, match=r"expected bounding.* such as \S+anna/door \(a camera without images\)"
    ):
        read_folder(tmp_path, "x")


def test_two_folders_that_both_fit_are_named(tmp_path):
    for inside in ("first/", "second/"):
        miniatures.market1501(tmp_path / "market1501", inside)
    with pytest.raises(DataError, match="both first and second contain bounding_box_train"):
        read_dataset(tmp_path, "market1501")


@given(st.integers(0, 3), st.integers(0, 5), st.integers(1, 4))
def test_differences_count_people_without_distractors(strangers, people, cameras):
    identities = np.array([DISTRACTOR] * strangers + list(range(1, people + 1)), dtype=np.int64)
    paths = np.array([""] * len(identities), dtype=object)
    split = Split("s", paths, identities, np.arange(len(identities)) % cameras)
    counts = Counts.of(split)
    assert counts == (people, people + strangers, min(cameras, people + strangers))
    dataset = ReidDataset("d", split, split, split)
    benchmark = Benchmark(("d",), lambda folder: dataset, {"query": Counts(people, people + strangers)})
    assert benchmark.differences(dataset) == []
