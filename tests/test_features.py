from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from autoreid.config import SyntheticPeople
from autoreid.data.datasets.market1501 import read_market1501
from autoreid.data.images import Images
from autoreid.data.loaders import embedding_batches
from autoreid.data.synthetic.people import write_synthetic_people
from autoreid.distributed import World
from autoreid.errors import DataError, RunError
from autoreid.evaluation.features import FeatureSet, extract_features, flip_test
from tests.helpers.image_folder import ALONE
from tests.helpers.ranks import run_ranks
from tests.helpers.traffic import META, traffic

SHAPE = (32, 16)
PEOPLE = SyntheticPeople(
    train_identities=1, test_identities=3, images_per_identity=5, cameras=2, distractors=1, junk=1
)
LOAD = partial(embedding_batches, images=Images(*SHAPE), batch_size=4, workers=0, device=torch.device("cpu"))


def tiny_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(6)).eval()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    root = tmp_path_factory.mktemp("features") / "people"
    write_synthetic_people(root, PEOPLE)
    return read_market1501(root).gallery


@torch.inference_mode()
def one_by_one(network, split):
    """Features computed one image at a time, with reading and normalisation written out here."""
    rows = []
    for path in split.paths:
        with Image.open(path) as file:
            pixels = np.asarray(file.resize(SHAPE[::-1], Image.Resampling.BICUBIC)) / 255
        normal = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        rows.append(network(torch.tensor(normal).permute(2, 0, 1)[None].float())[0])
    return torch.stack(rows)


def test_features_are_those_of_each_image_by_itself_in_order(gallery):
    network = tiny_network()
    features = extract_features(network, gallery, LOAD, ALONE)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, one_by_one(network, gallery), rtol=1e-4, atol=1e-5)


def extract_on_rank(world, gallery):
    seen = []

    def load(split, indices):
        seen.extend(indices.tolist())
        return LOAD(split, indices)

    return extract_features(tiny_network(), gallery, load, world).numpy(), seen


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_images_without_repeating_any_and_have_all_features(gallery, ranks):
    split = gallery.select(np.arange(7))  # not a multiple of either number of ranks
    alone, _ = extract_on_rank(ALONE, split)
    results = run_ranks(extract_on_rank, ranks, split)
    for features, _ in results:
        np.testing.assert_allclose(features, alone, rtol=1e-5, atol=1e-6)
    assert sorted(index for _, seen in results for index in seen) == list(range(7))


def test_fewer_images_than_ranks(gallery):
    split = gallery.select(np.arange(1))
    for features, _ in run_ranks(extract_on_rank, 2, split):
        np.testing.assert_allclose(features, extract_on_rank(ALONE, split)[0], rtol=1e-5)


def test_features_stay_on_the_device_and_nothing_waits_for_them(gallery):
    network = tiny_network()
    network(torch.zeros(1, 3, *SHAPE))  # initialises the lazy layer
    network.to(META)
    load = partial(LOAD, device=META)
    world = World(0, 1, 0, META)
    extract_features(network, gallery, load, world)  # fills the caches of constants on the device
    with traffic() as found:
        features = extract_features(network, gallery, load, world)
    assert features.is_meta
    assert features.shape == (len(gallery), 6)
    assert found.copies == -(-len(gallery) // 4), "one per batch"


def test_batches_may_come_in_any_order_and_images_left_out_are_no_features(gallery):
    network = tiny_network()
    expected = extract_features(network, gallery, LOAD, ALONE)

    def load(split, indices):
        yield from reversed(list(LOAD(split, indices)))

    torch.testing.assert_close(extract_features(network, gallery, load, ALONE), expected)
    some = extract_features(network, gallery, lambda split, indices: LOAD(split, indices[1:]), ALONE)
    assert some[0].isnan().all()
    torch.testing.assert_close(some[1:], expected[1:])


def test_an_unreadable_image_is_named(gallery, tmp_path):
    paths = gallery.paths.copy()
    paths[3] = str(tmp_path / "0001_c1s1_000001_00.jpg")
    Path(paths[3]).write_bytes(b"\xff\xd8\xff")
    split = type(gallery)("gallery", paths, gallery.identities, gallery.cameras)
    with pytest.raises(DataError, match=r"0001_c1s1_000001_00\.jpg"):
        extract_features(tiny_network(), split, LOAD, ALONE)


def test_the_flip_test_averages_an_image_and_its_mirror_image(gallery, tmp_path):
    network = tiny_network()
    flipped = extract_features(flip_test(network), gallery, LOAD, ALONE)
    mirrored = []
    for number, path in enumerate(gallery.paths):
        mirrored.append(str(tmp_path / f"{number}.png"))
        with Image.open(path) as file:
            # PIL's bicubic filter is symmetric: flipping before or after the resize gives the same.
            file.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored[-1])
    mirror = type(gallery)("mirror", np.array(mirrored, object), gallery.identities, gallery.cameras)
    expected = (one_by_one(network, gallery) + one_by_one(network, mirror)) / 2
    torch.testing.assert_close(flipped, expected, rtol=1e-3, atol=1e-2)
    assert not torch.allclose(flipped, one_by_one(network, gallery), atol=1e-2)


def feature_set(N=4, D=3) -> FeatureSet:
    rng = np.random.default_rng(0)
    return FeatureSet(
        rng.normal(size=(N, D)).astype(np.float32),
        np.arange(N) - 1,
        np.arange(N) % 2,
        np.array([f"bilder/straße/{n}.jpg" for n in range(N)]),
    )


def test_a_feature_file_gives_back_what_was_saved(tmp_path):
    saved = feature_set()
    saved.save(tmp_path / "q.npz")
    loaded = FeatureSet.load(tmp_path / "q.npz")
    for name in ("features", "identities", "cameras", "paths"):
        expected = getattr(saved, name)
        np.testing.assert_array_equal(getattr(loaded, name), expected)
        assert getattr(loaded, name).dtype == expected.dtype
        with np.load(tmp_path / "q.npz", allow_pickle=False) as file:
            np.testing.assert_array_equal(file[name], expected)
    assert [path.name for path in tmp_path.iterdir()] == ["q.npz"]


def test_a_file_of_another_system_may_have_other_types_and_no_paths(tmp_path):
    path = tmp_path / "q.npz"
    features = np.eye(3, dtype=np.float64)
    np.savez_compressed(
        path, features=features, identities=np.array([3, 1, 2], np.int16), cameras=np.zeros(3, np.uint8)
    )
    loaded = FeatureSet.load(path)
    assert loaded.features.dtype == np.float32
    assert loaded.identities.dtype == loaded.cameras.dtype == np.int64
    assert loaded.identities.tolist() == [3, 1, 2]
    assert loaded.paths.tolist() == ["", "", ""]


def test_a_split_and_its_features_make_a_set_that_can_be_saved(gallery, tmp_path):
    features = torch.arange(len(gallery) * 2, dtype=torch.float64).view(-1, 2)
    FeatureSet.of(gallery, features).save(tmp_path / "g.npz")
    loaded = FeatureSet.load(tmp_path / "g.npz")
    assert loaded.paths.tolist() == gallery.paths.tolist()
    np.testing.assert_array_equal(loaded.features, features.numpy())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("features", None, "no array 'features'"),
        ("cameras", None, "no array 'cameras'"),
        ("identities", np.arange(3), r"identities has shape \(3,\): must be \(4,\)"),
        ("paths", np.array([["a"] * 4]), r"paths has shape \(1, 4\)"),
        ("features", np.zeros(4), r"features has shape \(4,\)"),
        ("features", np.array([[np.nan], [1], [np.inf], [2]]), "features: NaN or infinity in 2 of 4 rows"),
        ("features", np.full((4, 1), 1e300), "features: NaN or infinity in 4 of 4 rows"),
        ("features", np.zeros((4, 2), complex), "features has type complex128: must be numbers"),
        (
            "identities",
            np.array([1, 2**63, 3, 4], np.uint64),
            "identities has the number 9223372036854775808: must fit into 63 bits",
        ),
        ("identities", np.arange(4.0), "identities has type float64: must be integers"),
        ("paths", np.arange(4), "paths has type int64: must be text"),
        ("paths", np.array(["a", "b", "c", "d"], object), "not a feature file"),
    ],
)
def test_a_wrong_array_is_named_with_its_file(tmp_path, key, value, message):
    good = feature_set()
    arrays = {name: getattr(good, name) for name in ("features", "identities", "cameras", "paths")}
    arrays = {name: array for name, array in (arrays | {key: value}).items() if array is not None}
    np.savez(tmp_path / "q.npz", **arrays)
    with pytest.raises(DataError, match=f"q.npz: .*{message}"):
        FeatureSet.load(tmp_path / "q.npz")


@pytest.mark.parametrize("content", ["missing", "empty", "garbage", "array", "pickle", "cut", "folder"])
def test_a_file_that_holds_no_features_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "q.npz"
    if content in ("empty", "garbage"):
        path.write_bytes(b"" if content == "empty" else b"what is this")
    elif content in ("array", "pickle"):
        with path.open("wb") as file:
            np.save(file, np.arange(3) if content == "array" else np.array([{}]))
    elif content == "cut":
        feature_set().save(path)
        path.write_bytes(path.read_bytes()[:200])
    elif content == "folder":
        path.mkdir()
    with pytest.raises(DataError, match=r"q\.npz: ") as caught:
        FeatureSet.load(path)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_feature_file_is_noticed(tmp_path):
    path = tmp_path / "q.npz"
    saved = feature_set(50, 16)
    saved.save(path)
    data = bytearray(path.read_bytes())
    data[data.index(saved.features.tobytes()) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a feature file"):
        FeatureSet.load(path)


def test_features_that_cannot_be_written_leave_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "q.npz"
    feature_set().save(path)
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(RunError, match=r"q\.npz: cannot write the features: No space left"):
        feature_set(9).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["q.npz"]
