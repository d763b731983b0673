from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoreid.config import Config, Data, Evaluation, Search
from autoreid.data.training_data import build_search_data, build_training_data
from autoreid.distributed import World
from autoreid.errors import DataError


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """12 identities with 8 images by 4 cameras to train on; 3 others as query and gallery."""
    root = tmp_path_factory.mktemp("market")
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


def build_data(root, measured="held_out", seed=0, rank=0, size=1, build=build_search_data, **options):
    sizes = {"height": 16, "width": 8, "batch_size": 8, "images_per_identity": 2, "held_out_fraction": 0.25}
    config = Config(
        task_name="t",
        seed=seed,
        data=Data(root=root, workers=0, **sizes | options),
        search=Search(operations=("skip_connect",)),
        evaluation=Evaluation(split=measured),
    )
    return build(config, World(rank, size, rank, torch.device("cpu")))


def paths_of(stream):
    """Which files an epoch shows, read off the sampler."""
    split = stream._images.split
    return set(split.paths[stream.sampler.global_batches()].ravel())


def test_weights_alphas_and_held_out_share_no_image(market):
    data = build_data(market)
    groups = [
        paths_of(data.stream),
        paths_of(data.alpha_stream),
        set(data.query.paths),
        set(data.gallery.paths),
    ]
    everything = {str(path) for path in (market / "bounding_box_train").iterdir()}
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(everything) == 96
    assert {str(path) for path in set.union(*groups)} == everything
    held = set(data.query.identities) | set(data.gallery.identities)
    assert len(held) == 3
    assert data.num_identities == 9
    for number in ("9 identities", "36 images for the weights", "36 for the alphas"):
        assert number in data.summary
    assert "\n" not in data.summary


def test_both_streams_label_a_person_alike(market):
    data = build_data(market)
    labels = {}
    for stream in (data.stream, data.alpha_stream):
        split = stream._images.split
        for indices in stream.sampler.global_batches():
            batch = next(stream)
            for index, label in zip(indices, batch.labels.tolist(), strict=True):
                labels.setdefault(int(split.identities[index]), set()).add(label)
    assert sorted(label for found in labels.values() for label in found) == list(range(9))


def test_the_division_follows_the_seed_and_not_the_rank(market):
    one, same = build_data(market), build_data(market, rank=1, size=2)
    other = build_data(market, seed=1)
    assert paths_of(one.stream) == paths_of(same.stream) != paths_of(other.stream)
    assert one.query.paths.tolist() == same.query.paths.tolist()
    shares = [build_data(market, rank=rank, size=2) for rank in (0, 1)]
    whole = next(one.alpha_stream)
    parts = [next(share.alpha_stream) for share in shares]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_a_training_has_the_images_of_both_halves(market):
    search, training = build_data(market), build_data(market, build=build_training_data)
    assert paths_of(training.stream) == paths_of(search.stream) | paths_of(search.alpha_stream)
    assert training.query.paths.tolist() == search.query.paths.tolist()
    assert (training.num_identities, search.num_identities) == (9, 9)
    assert "9 identities, 72 images" in training.summary


def test_the_benchmarks_own_test_set(market):
    data = build_data(market, "test", held_out_fraction=0.0)
    assert {Path(path).parent.name for path in data.query.paths} == {"query"}
    assert len(data.gallery) == 4
    assert data.num_identities == 12


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        build_data(tmp_path / "nowhere")
