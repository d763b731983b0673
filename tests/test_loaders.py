from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoreid.config import Config, Data, Evaluation, Search
from autoreid.data.loaders import BatchStream, embedding_batches
from autoreid.data.records import Split
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.training_data import build_search_data, build_training_data
from autoreid.data.transforms import DEVIATION, MEAN, denormalise, evaluation_transform, training_transform
from autoreid.distributed import World
from autoreid.errors import DataError

HEIGHT, WIDTH = 16, 8
# Everything random that there is, so that any difference in seeds shows.
TRANSFORM = training_transform(HEIGHT, WIDTH, padding=2, erasing=0.5, brightness=0.3, contrast=0.2)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """7 identities with 2 to 6 images each, every image different."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths, identities = [], []
    for identity, count in enumerate([2, 3, 4, 5, 6, 4, 2]):
        for number in range(count):
            path = folder / f"{identity}_{number}.jpg"
            Image.fromarray(rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)).save(path)
            paths.append(str(path))
            identities.append(identity * 10)
    cameras = np.arange(len(paths)) % 3
    return Split("train", np.array(paths, dtype=object), np.array(identities), cameras)


def make_stream(split, workers=0, rank=0, world_size=1, seed=5, batch_size=8, transform=TRANSFORM):
    sampler = IdentityBalancedSampler(split.identities, batch_size, 2, seed, rank, world_size)
    labels = split.identities // 10
    return BatchStream(split, sampler, labels, transform, (HEIGHT, WIDTH), workers, pin_memory=False)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.labels, theirs.labels)
        assert mine.broken == theirs.broken


@pytest.fixture(scope="module")
def two_epochs(split):
    """The batches of two epochs, loaded in this process."""
    stream = make_stream(split)
    return take(stream, 2 * stream.batches_per_epoch)


def test_batches_hold_what_the_sampler_chose(split):
    stream = make_stream(split, transform=evaluation_transform(HEIGHT, WIDTH))
    chosen = stream.sampler.global_batches()
    assert stream.batches_per_epoch == len(chosen) >= 3
    assert iter(stream) is stream
    for indices in chosen:
        batch = next(stream)
        assert batch.images.shape == (8, 3, HEIGHT, WIDTH)
        assert batch.images.dtype == torch.float32
        assert batch.labels.tolist() == (split.identities[indices] // 10).tolist()
        assert batch.broken is None
        for image, index in zip(batch.images, indices, strict=True):
            expected = evaluation_transform(HEIGHT, WIDTH)(Image.open(split.paths[index]))
            assert torch.equal(image, expected)


def test_workers_change_nothing(split, two_epochs):
    stream = make_stream(split, workers=2)
    assert_same(take(stream, len(two_epochs)), two_epochs)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_have_the_batches_of_one_process(split, two_epochs, world_size):
    ranks = [make_stream(split, rank=rank, world_size=world_size) for rank in range(world_size)]
    for expected in two_epochs:
        shares = [next(stream) for stream in ranks]
        assert torch.equal(torch.cat([share.images for share in shares]), expected.images)
        assert torch.equal(torch.cat([share.labels for share in shares]), expected.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_at_any_batch(split, two_epochs, workers):
    """Each batch of two epochs in turn is the one to go on at, in a stream that had gone elsewhere."""
    steps = range(len(two_epochs)) if workers == 0 else (1, len(two_epochs) // 2)
    reference, states = make_stream(split), []
    for _ in two_epochs:
        states.append(reference.state_dict())
        next(reference)
    resumed = make_stream(split, workers=workers)
    take(resumed, 2)
    for step in steps:
        resumed.load_state_dict(states[step])
        assert_same(take(resumed, len(two_epochs) - step), two_epochs[step:])


def test_loading_ahead_does_not_move_the_position(split):
    alone, ahead = make_stream(split), make_stream(split, workers=2)
    for _ in range(alone.batches_per_epoch + 1):
        next(alone), next(ahead)
        assert alone.state_dict() == ahead.state_dict()


def test_resumes_on_another_number_of_ranks(split, two_epochs):
    first = make_stream(split, rank=1, world_size=2)
    take(first, 3)
    alone = make_stream(split)
    alone.load_state_dict(first.state_dict())
    assert_same(take(alone, len(two_epochs) - 3), two_epochs[3:])


def test_an_image_is_augmented_anew_each_time(tmp_path):
    """One identity with one image: every image of every batch is the same file."""
    path = tmp_path / "one.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 10, 3), dtype=np.uint8)).save(path)
    split = Split("train", np.array([str(path)] * 3, dtype=object), np.array([0, 1, 1]), np.zeros(3, int))
    stream = make_stream(split, batch_size=4)
    images = torch.cat([batch.images for batch in take(stream, 4)])
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    # Another seed augments otherwise, the same one alike.
    again, other = make_stream(split, batch_size=4), make_stream(split, batch_size=4, seed=6)
    assert torch.equal(next(again).images, images[:4])
    assert not torch.equal(next(other).images, images[:4])


def test_a_broken_image_travels_with_its_batch(split, tmp_path):
    paths = split.paths.copy()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(open(paths[5], "rb").read()[:200])  # noqa: SIM115, PTH123
    paths[5] = str(broken)
    split = Split(split.name, paths, split.identities, split.cameras)
    for workers in (0, 2):
        stream = make_stream(split, workers=workers)
        chosen = stream.sampler.global_batches()
        for indices, batch in zip(chosen, take(stream, len(chosen)), strict=True):
            if 5 not in indices:
                assert batch.broken is None
                continue
            assert batch.broken.startswith(f"{broken}: cannot read this image: ")
            assert "\n" not in batch.broken
            for image, index in zip(batch.images, indices, strict=True):
                assert image.any() == (index != 5)
            assert batch.labels.tolist() == (split.identities[indices] // 10).tolist()


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "folder"])
def test_other_ways_in_which_an_image_is_broken(split, tmp_path, kind):
    path = tmp_path / "bad.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text("" if kind == "empty" else "no image")
    bad = Split(
        "query", np.array([split.paths[0], str(path)], dtype=object), np.zeros(2, int), np.zeros(2, int)
    )
    batches = embedding_batches(
        bad, np.arange(2), evaluation_transform(HEIGHT, WIDTH), (HEIGHT, WIDTH), 2, workers=0
    )
    (batch,) = batches
    assert batch.broken.startswith(f"{path}: cannot read this image: ")
    assert batch.images[0].any()
    assert not batch.images[1].any()


def test_grey_and_palette_images_become_colour(tmp_path):
    grey = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(20, 10))
    paths = []
    for mode in ("L", "P", "RGBA"):
        paths.append(str(tmp_path / f"{mode}.png"))
        grey.convert(mode).save(paths[-1])
    split = Split("query", np.array(paths, dtype=object), np.zeros(3, int), np.zeros(3, int))
    transform = evaluation_transform(HEIGHT, WIDTH)
    (batch,) = embedding_batches(split, np.arange(3), transform, (HEIGHT, WIDTH), 3, workers=0)
    assert batch.broken is None
    assert batch.images.shape == (3, 3, HEIGHT, WIDTH)
    for image in batch.images[1:]:
        torch.testing.assert_close(image, batch.images[0])


def test_preview_shows_what_comes_next_and_stays(split, two_epochs):
    stream = make_stream(split)
    take(stream, 2)
    position = stream.state_dict()
    assert_same([stream.preview()], two_epochs[2:3])
    assert stream.state_dict() == position
    assert_same(take(stream, 2), two_epochs[2:4])


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_own_random_numbers_are_left_alone(split, workers):
    """A checkpoint restores them; a resumed run starts its loaders once more than one that was not interrupted."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    stream = make_stream(split, workers=workers)
    take(stream, stream.batches_per_epoch + 1)
    stream.preview()
    transform = evaluation_transform(HEIGHT, WIDTH)
    list(embedding_batches(split, np.arange(4), transform, (HEIGHT, WIDTH), 2, workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_embedding_batches_give_each_chosen_image_once_in_order(split, batch_size, workers):
    indices = np.array([3, 0, 25, 7, 7, 11, 2, 1, 20])
    transform = evaluation_transform(HEIGHT, WIDTH)
    batches = list(embedding_batches(split, indices, transform, (HEIGHT, WIDTH), batch_size, workers))
    assert [len(batch.labels) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.cat([batch.labels for batch in batches]).tolist() == indices.tolist()
    images = torch.cat([batch.images for batch in batches])
    for image, index in zip(images, indices, strict=True):
        assert torch.equal(image, transform(Image.open(split.paths[index])))
    nothing = embedding_batches(split, indices[:0], transform, (HEIGHT, WIDTH), batch_size, workers)
    assert list(nothing) == []


ENDS = """
import sys
import numpy as np
from autoreid.data.loaders import embedding_batches
from autoreid.data.records import Split
from autoreid.data.transforms import evaluation_transform
sys.path.insert(0, sys.argv[1])
from test_loaders import make_stream

paths = np.array(sys.argv[3:], dtype=object)
split = Split("train", paths, np.repeat(np.arange(4), 2) * 10, np.zeros(8, int))
stream = make_stream(split, workers=1)
embedding = embedding_batches(split, np.arange(8), evaluation_transform(16, 8), (16, 8), 1, workers=1)
print(len(next(stream).labels), len(next(embedding).labels))
if sys.argv[2] == "fail":
    raise RuntimeError("the run failed")
"""


@pytest.mark.parametrize(("how", "status"), [("end", 0), ("fail", 1)])
def test_a_process_ends_though_its_workers_ignore_signals(split, how, status):
    """Python sends them SIGTERM at its exit and waits for them."""
    command = [sys.executable, "-c", ENDS, str(Path(__file__).parent), how, *split.paths[:8]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (status, "8 1\n")
    assert "killed by signal" not in done.stderr
    assert ("the run failed" in done.stderr) == (how == "fail")


def test_workers_go_on_when_all_processes_are_told_to_stop(split, two_epochs):
    stream = make_stream(split, workers=2)
    first = take(stream, 2)  # one from each worker
    workers = multiprocessing.active_children()
    assert len(workers) >= 2
    # As from Slurm: the sender is another process than the workers' parent.
    for name in ("TERM", "USR2"):
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    assert_same(first + take(stream, len(two_epochs) - 2), two_epochs)
    assert all(worker.is_alive() for worker in workers)


# Transforms


def picture(size=(30, 50)):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_evaluation_is_a_bicubic_resize_and_a_normalisation():
    found = evaluation_transform(32, 16)(picture())
    resized = np.asarray(picture().resize((16, 32), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = (resized - np.array(MEAN)) / np.array(DEVIATION)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected).permute(2, 0, 1), rtol=0, atol=1e-5)
    assert (MEAN, DEVIATION) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_training_without_anything_random_is_evaluation():
    plain = training_transform(32, 16, padding=0, flip=0)
    assert torch.equal(plain(picture()), evaluation_transform(32, 16)(picture()))
    flipped = training_transform(32, 16, padding=0, flip=1)
    assert torch.equal(flipped(picture()), evaluation_transform(32, 16)(picture()).flip(2))


def test_training_crops_from_a_padded_image():
    """Every crop is a window of the image in a black frame, and many different ones come."""
    height, width, padding = 12, 8, 3
    transform = training_transform(height, width, padding, flip=0)
    inner = evaluation_transform(height, width)(picture())
    black = (-torch.tensor(MEAN) / torch.tensor(DEVIATION))[:, None, None]
    framed = black.expand(3, height + 2 * padding, width + 2 * padding).clone()
    framed[:, padding:-padding, padding:-padding] = inner
    windows = [
        (top, left, framed[:, top : top + height, left : left + width])
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    torch.manual_seed(0)
    seen = set()
    for _ in range(60):
        crop = transform(picture())
        (found,) = [(top, left) for top, left, window in windows if torch.allclose(crop, window, atol=1e-6)]
        seen.add(found)
    assert {top for top, _ in seen} == {left for _, left in seen} == set(range(2 * padding + 1))


def test_erasing_and_jitter_are_used():
    torch.manual_seed(0)
    plain = evaluation_transform(32, 16)(picture())
    erased = training_transform(32, 16, padding=0, flip=0, erasing=1.0)(picture())
    changed = (erased != plain).any(0)
    assert 0 < changed.sum() < changed.numel()
    assert not erased[:, changed].any()
    brighter = {
        training_transform(32, 16, padding=0, flip=0, brightness=0.5)(picture()).mean().item()
        for _ in range(5)
    }
    spread = {
        training_transform(32, 16, padding=0, flip=0, contrast=0.5)(picture()).std().item() for _ in range(5)
    }
    assert len(brighter) == len(spread) == 5


def test_denormalise_gives_the_pixels_back():
    pixels = torch.from_numpy(np.asarray(picture((16, 32))).copy()).permute(2, 0, 1)
    normalised = evaluation_transform(32, 16)(picture((16, 32)))
    found = denormalise(torch.stack([normalised, normalised * 100]))
    assert found.dtype == torch.uint8
    assert torch.equal(found[0], pixels)
    assert set(found[1].unique().tolist()) <= {*range(256)}
    assert {0, 255} <= set(found[1].unique().tolist())


# The data of a search


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
