from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from autoreid.commands import train
from autoreid.config import Config, Data, Evaluation, Losses, ReidCell, Search, SyntheticPeople
from autoreid.data import training_data
from autoreid.data.datasets import read_dataset
from autoreid.data.records import DISTRACTOR, JUNK, Split, combine
from autoreid.data.training_data import (
    build_search_data,
    build_training_data,
    generate_people,
    read_datasets,
    run_images,
)
from autoreid.data.transforms import normalise
from autoreid.distributed import StopSignal, World
from autoreid.errors import DataError
from autoreid.evaluation import evaluate_retrieval
from autoreid.recipes import load_config
from autoreid.reporting.run_record import open_run
from autoreid.training.measure import measure_network
from tests.helpers import miniatures
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import OSNET_TRAINING, write_tiny


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """12 training identities with 8 images from 4 cameras; 2 others as query and gallery."""
    root = tmp_path_factory.mktemp("data") / "market"
    root.mkdir()
    rng = np.random.default_rng(0)
    for folder, people in (
        ("bounding_box_train", range(1, 13)),
        ("query", (20, 21)),
        ("bounding_box_test", (20, 21)),
    ):
        (root / folder).mkdir()
        for person in people:
            for number in range(8 if folder == "bounding_box_train" else 2):
                camera = number % 4 + 1 if folder != "query" else 4
                name = f"{person:04d}_c{camera}s1_{person * 10 + number:06d}_00.jpg"
                pixels = rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / name)
    return root


def build_data(
    root, measured="held_out", seed=0, rank=0, size=1, build=build_search_data, keep=False, **options
):
    sizes = {"height": 16, "width": 8, "batch_size": 8, "images_per_identity": 2, "held_out_fraction": 0.25}
    options.setdefault("sources", (root.name,))
    config = Config(
        task_name="t",
        seed=seed,
        data=Data(root=root.parent, workers=0, **sizes | options),
        search=Search(reid_cell=ReidCell(operations=("skip_connect",))),
        evaluation=Evaluation(split=measured, keep_same_camera=keep),
    )
    return build(config, World(rank, size, rank, torch.device("cpu")))


def paths_of(stream):
    """Return the files that an epoch contains, according to the sampler."""
    split = stream.split
    return set(split.paths[stream.sampler.global_batches()].ravel())


def test_weights_alphas_and_held_out_share_no_image(market):
    data = build_data(market)
    groups = [
        paths_of(data.stream),
        paths_of(data.alpha_stream),
        set(data.targets[0].query.paths),
        set(data.targets[0].gallery.paths),
    ]
    everything = {str(path) for path in (market / "bounding_box_train").iterdir()}
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(everything) == 96
    assert {str(path) for path in set.union(*groups)} == everything
    held = set(data.targets[0].query.identities) | set(data.targets[0].gallery.identities)
    assert len(held) == 3
    assert data.num_identities == 9
    for number in ("9 identities", "36 images for the weights", "36 for the alphas"):
        assert number in data.summary
    assert "\n" not in data.summary


def test_both_streams_label_a_person_alike(market):
    data = build_data(market)
    labels = {}
    for stream in (data.stream, data.alpha_stream):
        split = stream.split
        for indices in stream.sampler.global_batches():
            batch = next(stream)
            for index, label in zip(indices, batch.labels.tolist(), strict=True):
                labels.setdefault(int(split.identities[index]), set()).add(label)
    assert sorted(label for found in labels.values() for label in found) == list(range(9))


def test_the_division_follows_the_seed_and_not_the_rank(market):
    one, same = build_data(market), build_data(market, rank=1, size=2)
    other = build_data(market, seed=1)
    assert paths_of(one.stream) == paths_of(same.stream) != paths_of(other.stream)
    assert one.targets[0].query.paths.tolist() == same.targets[0].query.paths.tolist()
    shares = [build_data(market, rank=rank, size=2) for rank in (0, 1)]
    whole = next(one.alpha_stream)
    parts = [next(share.alpha_stream) for share in shares]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_a_training_has_the_images_of_both_halves(market):
    search, training = build_data(market), build_data(market, build=build_training_data)
    assert paths_of(training.stream) == paths_of(search.stream) | paths_of(search.alpha_stream)
    assert training.targets[0].query.paths.tolist() == search.targets[0].query.paths.tolist()
    assert (training.num_identities, search.num_identities) == (9, 9)
    assert "9 identities, 72 images" in training.summary


def test_the_benchmarks_own_test_set(market):
    data = build_data(market, "test", held_out_fraction=0.0)
    assert {Path(path).parent.name for path in data.targets[0].query.paths} == {"query"}
    assert len(data.targets[0].gallery) == 4
    assert data.num_identities == 12


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        build_data(tmp_path / "nowhere")


def numbered(name, identities, cameras):
    paths = np.array([f"{name}/{number}" for number in range(len(identities))], dtype=object)
    return Split(name, paths, np.array(identities, dtype=np.int64), np.array(cameras, dtype=np.int64))


splits = st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 4)), max_size=12)


@given(st.lists(splits, min_size=1, max_size=4))
def test_combined_sources_share_neither_identity_nor_camera(sources):
    parts = [
        numbered(f"s{number}", *(zip(*pairs, strict=True) if pairs else ((), ())))
        for number, pairs in enumerate(sources)
    ]
    whole = combine(parts)
    assert whole.paths.tolist() == [path for part in parts for path in part.paths]
    person, camera = {}, {}
    everyone = [(number, *pair) for number, pairs in enumerate(sources) for pair in pairs]
    for (source, *pair), identity, view in zip(
        everyone, whole.identities.tolist(), whole.cameras.tolist(), strict=True
    ):
        if pair[0] in (JUNK, DISTRACTOR):
            assert identity == pair[0]
        else:
            assert person.setdefault((source, pair[0]), identity) == identity > 0
        assert camera.setdefault((source, pair[1]), view) == view >= 0
    assert len(set(person.values())) == len(person)
    assert len(set(camera.values())) == len(camera)
    first = combine(parts[:1])
    np.testing.assert_array_equal(first.identities, parts[0].identities)
    np.testing.assert_array_equal(first.cameras, parts[0].cameras)


def test_numbers_that_would_not_fit_when_combined_are_named():
    largest = numbered("large", [2**63 - 1], [1])
    assert combine([largest]).identities.tolist() == [2**63 - 1]
    for parts in ([largest, numbered("more", [1], [1])], [numbered("more", [1], [1]), largest]):
        with pytest.raises(DataError, match=r"the identity number [0-9]+ is too large to be joined"):
            combine(parts)


@pytest.fixture(scope="module")
def seasons(tmp_path_factory):
    """Two synthetic domains with 6 training and 4 test identities and 2 cameras, in Market-1501's layout."""
    root = tmp_path_factory.mktemp("seasons")
    small = {
        "train_identities": 6,
        "test_identities": 4,
        "images_per_identity": 4,
        "cameras": 2,
        "height": 32,
    }
    people = {
        name: SyntheticPeople(domain=domain, width=16, distractors=2, junk=1, **small)
        for domain, name in enumerate(("summer", "winter"))
    }
    generate_people(Data(root=root, sources=("summer",), targets=("winter",), synthetic=people))
    return root


def of_seasons(root, measured="test", sources=("summer", "winter"), **options):
    return build_data(
        root / "any", measured, build=build_training_data, held_out_fraction=0.0, sources=sources, **options
    )


def test_several_sources_train_together_and_are_measured_apart(seasons):
    data = of_seasons(seasons)
    assert data.num_identities == 12
    assert [target.name for target in data.targets] == ["summer", "winter"]
    for target in data.targets:
        assert {Path(path).parents[1].name for path in (*target.query.paths, *target.gallery.paths)} == {
            target.name
        }
        assert len(target.query) == 8
    assert {Path(path).parents[1].name for path in paths_of(data.stream)} == {"summer", "winter"}
    assert data.summary.startswith("summer + winter: 12 identities, 48 images; ")


def test_targets_replace_the_sources_own(seasons):
    data = of_seasons(seasons, sources=("summer",), targets=("winter",))
    assert [target.name for target in data.targets] == ["winter"]
    assert {Path(path).parents[1].name for path in paths_of(data.stream)} == {"summer"}


def test_combine_all_trains_on_everyone_but_distractors_and_junk(seasons):
    data = of_seasons(seasons, sources=("summer",), targets=("winter",), combine_all=True)
    assert data.num_identities == 10
    names = [path.name for path in (seasons / "summer").rglob("*.jpg")]
    assert {Path(path).name for path in data.stream.split.paths} == {
        name for name in names if not name.startswith(("-1", "0000"))
    }


def test_held_out_identities_of_several_sources_are_one_gallery(seasons):
    data = build_data(
        seasons / "any", build=build_training_data, held_out_fraction=0.4, sources=("summer", "winter")
    )
    (target,) = data.targets
    assert target.name == "held-out"
    assert target.query.num_identities == 5
    assert data.num_identities == 7


def test_a_target_without_queries_is_refused(seasons, monkeypatch):
    def trains_only(root, name):
        found = read_dataset(root, name)
        nothing = found.query.select(np.arange(0))
        return replace(found, query=nothing, gallery=nothing)

    monkeypatch.setattr(training_data, "read_dataset", trains_only)
    with pytest.raises(DataError, match="winter: has no queries"):
        of_seasons(seasons, targets=("winter",))


@pytest.mark.parametrize(
    ("name", "expected"), [("sumer", "did you mean summer?"), ("market151", "did you mean market1501 or ")]
)
def test_a_missing_data_set_is_answered_with_the_nearest(seasons, name, expected):
    with pytest.raises(DataError) as error:
        of_seasons(seasons, sources=(name,))
    assert str(error.value).startswith(f"{seasons / name}: no such folder; expected the data set {name}")
    assert expected in str(error.value)


def test_data_sets_of_the_same_people_are_refused(tmp_path):
    miniatures.market1501_500k(tmp_path / "market1501")
    with pytest.raises(DataError, match="market1501 and market1501_500k show the same people"):
        of_seasons(tmp_path, sources=("market1501", "market1501_500k"))


def test_people_that_are_trained_on_are_not_measured(tmp_path):
    miniatures.grid(tmp_path / "grid")
    with pytest.raises(
        DataError, match=r"grid_1: 2 of its 3 people are also trained on in grid, as in .*jpeg; choose"
    ):
        of_seasons(tmp_path, sources=("grid",), targets=("grid", "grid_1"), batch_size=4)


def write_list(root, name, rows):
    (root / name).mkdir()
    (root / name / "images.csv").write_text("\n".join(["path,identity,camera,split", *rows]))


def test_an_image_that_two_lists_name_is_refused(tmp_path):
    own_people(tmp_path, TRAIN)
    shared = tmp_path / "own/train/p1/a/1.jpg"
    write_list(tmp_path, "more", [f"{shared},x,1,train", f"{shared}x,y,2,train"])
    with pytest.raises(DataError, match=r"1.jpg: duplicate image: .* training data \(own and more\)"):
        build_data(tmp_path / "any", build=build_training_data, sources=("own", "more"))
    write_list(tmp_path, "test", [f"{shared},x,1,query", f"{shared}x,x,2,gallery", f"{shared}y,y,2,gallery"])
    with pytest.raises(DataError, match=r"1.jpg: is used both for training and for evaluation on test"):
        of_seasons(tmp_path, sources=("own",), targets=("test",))


def test_what_the_user_should_hear_of_is_passed_on(tmp_path):
    miniatures.dukemtmc(tmp_path / "dukemtmc")
    (note,) = of_seasons(tmp_path, sources=("dukemtmc",), batch_size=4).notes
    assert "4 train images, not 16,522" in note


def own_people(root, people):
    """A user data set: folders SPLIT/IDENTITY/CAMERA with the given numbers of images, all different."""
    rng = np.random.default_rng(0)
    for place, count in people.items():
        folder = root / "own" / place
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")


TRAIN = {f"train/p{person}/a": 2 for person in range(4)}


def test_queries_that_nobody_in_the_gallery_matches_are_told(tmp_path):
    """q1 has a match from camera b; q2 is in the gallery from the query's camera only, q3 not at all."""
    queries = {f"query/q{person}/a": 1 for person in (1, 2, 3)}
    gallery = {"gallery/q1/b": 1, "gallery/q2/a": 1, "gallery/distractor/b": 1}
    own_people(tmp_path, TRAIN | queries | gallery)
    (note,) = of_seasons(tmp_path, sources=("own",)).notes
    assert note.startswith("own: 2 of 3 queries are ignored")
    assert note.endswith(f"such as {tmp_path / 'own/query/q2/a/0.jpg'}")


def test_a_gallery_that_matches_no_query_is_refused(tmp_path):
    own_people(tmp_path, TRAIN | {"query/q1/a": 1, "gallery/q1/a": 2, "gallery/q2/b": 1})
    with pytest.raises(
        DataError, match="own: no query has a gallery image of its identity from another camera"
    ):
        of_seasons(tmp_path, sources=("own",))


@pytest.mark.parametrize("split", ["held_out", "test"])
def test_people_of_one_camera_are_measured_if_asked_for(tmp_path, split):
    queries = {f"{part}/q{person}/a": 2 for part in ("query", "gallery") for person in range(3)}
    own_people(tmp_path, {f"train/p{person}/a": 4 for person in range(8)} | queries)
    options = {"measured": split, "build": build_training_data}
    with pytest.raises(DataError, match="keep_same_camera=true"):
        build_data(tmp_path / "own", **options)
    data = build_data(tmp_path / "own", keep=True, **options)
    (target,) = data.targets
    assert {*map(len, (target.query, target.gallery))} == ({2, 6} if split == "held_out" else {6})
    evaluation = Evaluation(split=split, keep_same_camera=True)
    config = Config(task_name="t", data=Data(root=tmp_path, workers=0), evaluation=evaluation)
    alone = World(0, 1, 0, torch.device("cpu"))
    result = measure_network(config, torch.nn.Flatten(), data, alone).targets[target.name]
    pixels = [
        normalise(torch.from_numpy(np.stack([*map(data.images, part.paths)]))).flatten(1)
        for part in (target.query, target.gallery)
    ]
    other = torch.full((len(target.gallery),), 99)
    numbers = (target.query.identities, target.gallery.identities, target.query.cameras, other)
    assert result == evaluate_retrieval(*pixels, *numbers)


def test_identities_with_one_image_are_told_and_repeated(tmp_path):
    own_people(tmp_path, TRAIN | {"train/p4/a": 1, "query/q/a": 1, "gallery/q/b": 1})
    data = of_seasons(tmp_path, sources=("own",), batch_size=10)
    assert data.notes == ("1 identities have a single image, which is repeated 2 times in a batch",)
    batch = next(data.stream)
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_without_training_images_the_reason_is_told(tmp_path):
    """A split folder of an unknown name is skipped."""
    own_people(
        tmp_path,
        {f"{split}/q{person}/{split}": 1 for split in ("training", "query", "gallery") for person in (1, 2)},
    )
    with pytest.raises(DataError) as error:
        of_seasons(tmp_path, sources=("own",))
    assert str(error.value) == (
        f"own: no images for training; 1 file or folder is skipped, such as {tmp_path / 'own/training'} (beside the "
        "folders of the splits)"
    )


def test_an_archive_is_no_data_set(tmp_path):
    (tmp_path / "people.zip").write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"people\.zip: is a file; expected the folder .* scripts/prepare_dataset\.py"
    ):
        of_seasons(tmp_path, sources=("people.zip",))


def test_one_identity_is_not_enough(tmp_path):
    test = {f"query/q{person}/a": 1 for person in (1, 2)} | {"gallery/q1/b": 2, "gallery/q2/b": 2}
    for people, refused in ((1, True), (2, False)):
        folder = tmp_path / str(people)
        own_people(folder, {f"train/p{person}/a": 4 for person in range(people)} | test)
        sizes = {"height": 16, "width": 8, "batch_size": 2, "images_per_identity": 2, "workers": 0}
        data = Data(root=folder, sources=("own",), held_out_fraction=0.0, **sizes)
        losses, evaluation = Losses(classification_weight=1.0), Evaluation(split="test")
        config = Config(task="train", task_name="t", data=data, losses=losses, evaluation=evaluation)
        alone = World(0, 1, 0, torch.device("cpu"))
        if refused:
            with pytest.raises(
                DataError, match="own: the training set has 1 identity; a loss needs two or more"
            ):
                build_training_data(config, alone)
        else:
            assert build_training_data(config, alone).num_identities == 2


def test_broken_images_of_every_part_are_left_out_alike_with_and_without_a_cache(tmp_path):
    queries = {f"query/q{person}/a": 1 for person in (1, 2)}
    own_people(tmp_path, TRAIN | queries | {"gallery/q1/b": 2, "gallery/q2/b": 2})
    lost = [
        tmp_path / "own" / name for name in ("train/p1/a/0.jpg", "query/q2/a/0.jpg", "gallery/q1/b/1.jpg")
    ]
    for path in lost:
        path.write_bytes(b"")
    batches = []
    for cache in (Path("cache"), None):
        options = {"cache": cache, "on_broken_image": "skip"}
        sizes = {"height": 16, "width": 8, "batch_size": 8, "images_per_identity": 2}
        data = Data(root=tmp_path, sources=("own",), held_out_fraction=0.0, workers=0, **sizes | options)
        config = Config(task="train", task_name="t", data=data, evaluation=Evaluation(split="test"))
        alone = World(0, 1, 0, torch.device("cpu"))
        found = build_training_data(config, alone, run_images(config, alone, read_datasets(config)))
        for path in lost:
            assert sum(str(path) in note for note in found.notes) == 1
        (target,) = found.targets
        shown = {*found.stream.split.paths, *target.query.paths, *target.gallery.paths}
        assert shown == {str(path) for path in (tmp_path / "own").rglob("*.jpg")} - {*map(str, lost)}
        batches.append([next(found.stream).images for _ in range(4)])
    for cached, decoded in zip(*batches, strict=True):
        assert torch.equal(cached, decoded)


def listings_at_a_start(world, path):
    """Return the names of the data sets that this rank reads at the start of a run."""
    calls, read = [], training_data.read_dataset

    def counted(root, name):
        calls.append(name)
        return read(root, name)

    training_data.read_dataset = counted
    config = load_config(path)
    with StopSignal() as stop, open_run(config) as folder:
        train.run(config, world, folder, stop)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_start_lists_each_data_set_once_on_rank_0_alone(tmp_path, ranks):
    path = write_tiny(tmp_path, **OSNET_TRAINING, training__epochs=1)
    names = list(load_config(path).data.sources)
    assert run_ranks(listings_at_a_start, ranks, path) == [names, *[[]] * (ranks - 1)]
