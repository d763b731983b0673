from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from autoreid.data.images import Images
from autoreid.data.loaders import BatchStream, embedding_batches
from autoreid.data.records import Split
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.transforms import DEVIATION, MEAN, Augmentation
from tests.helpers.traffic import META, traffic

HEIGHT, WIDTH = 16, 8
CPU = torch.device("cpu")
# All kinds of randomness, so that any difference in seeds is visible.
EVERYTHING = Augmentation(padding=2, flip=0.5, erasing=0.5, brightness=0.3, contrast=0.2)
#: A single image, resized and normalised by torchvision.
ALONE = v2.Compose(
    [
        v2.Resize((HEIGHT, WIDTH), v2.InterpolationMode.BICUBIC),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, DEVIATION),
    ]
)
BLACK = -torch.tensor(MEAN) / torch.tensor(DEVIATION)


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


def make_stream(
    split, workers=0, rank=0, world_size=1, seed=5, batch_size=8, augmentation=EVERYTHING, device=CPU
):
    sampler = IdentityBalancedSampler(split.identities, batch_size, 2, seed, rank, world_size)
    labels = split.identities // 10
    return BatchStream(split, sampler, labels, Images(HEIGHT, WIDTH), augmentation, workers, device)


def embed(split, indices, batch_size, workers=0):
    return list(embedding_batches(split, indices, Images(HEIGHT, WIDTH), batch_size, workers, CPU))


def is_black(image):
    return bool(torch.isclose(image, BLACK[:, None, None]).all())


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
    """Return the batches of two epochs, loaded in this process."""
    stream = make_stream(split)
    return take(stream, 2 * stream.batches_per_epoch)


def test_batches_hold_what_the_sampler_chose(split):
    stream = make_stream(split, augmentation=Augmentation())
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
            assert torch.equal(image, ALONE(Image.open(split.paths[index])))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")  # on a machine with fewer cores
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(split, two_epochs, workers):
    stream = make_stream(split, workers=workers)
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
    """Resume at each batch of two epochs, in a stream that was at another position."""
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
    """A single image as the whole data set, so every batch consists of it."""
    path = tmp_path / "one.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 10, 3), dtype=np.uint8)).save(path)
    split = Split("train", np.array([str(path)] * 3, dtype=object), np.array([0, 1, 1]), np.zeros(3, int))
    stream = make_stream(split, batch_size=4)
    images = torch.cat([batch.images for batch in take(stream, 4)])
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    # Different seeds give different augmentations, equal seeds equal ones.
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
                assert is_black(image) == (index == 5)
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
    (batch,) = embed(bad, np.arange(2), 2)
    assert batch.broken.startswith(f"{path}: cannot read this image: ")
    assert not is_black(batch.images[0])
    assert is_black(batch.images[1])


def test_grey_and_palette_images_become_colour(tmp_path):
    grey = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(20, 10))
    paths = []
    for mode in ("L", "P", "RGBA"):
        paths.append(str(tmp_path / f"{mode}.png"))
        grey.convert(mode).save(paths[-1])
    split = Split("query", np.array(paths, dtype=object), np.zeros(3, int), np.zeros(3, int))
    (batch,) = embed(split, np.arange(3), 3)
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
    """A checkpoint restores torch's generator, and a resumed run starts its loaders one more time than other runs."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    stream = make_stream(split, workers=workers)
    take(stream, stream.batches_per_epoch + 1)
    stream.preview()
    embed(split, np.arange(4), 2, workers)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_embedding_batches_give_each_chosen_image_once_in_order(split, batch_size, workers):
    indices = np.array([3, 0, 25, 7, 7, 11, 2, 1, 20])
    batches = embed(split, indices, batch_size, workers)
    assert [len(batch.labels) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.cat([batch.labels for batch in batches]).tolist() == indices.tolist()
    images = torch.cat([batch.images for batch in batches])
    for image, index in zip(images, indices, strict=True):
        assert torch.equal(image, ALONE(Image.open(split.paths[index])))
    assert embed(split, indices[:0], batch_size, workers) == []


ENDS = """
import sys
import numpy as np
from autoreid.data.images import Images
from autoreid.data.loaders import embedding_batches
from autoreid.data.records import Split
sys.path.insert(0, sys.argv[1])
from tests.test_loaders import CPU, make_stream

paths = np.array(sys.argv[3:], dtype=object)
split = Split("train", paths, np.repeat(np.arange(4), 2) * 10, np.zeros(8, int))
stream = make_stream(split, workers=1)
embedding = embedding_batches(split, np.arange(8), Images(16, 8), 1, 1, CPU)
print(len(next(stream).labels), len(next(embedding).labels))
if sys.argv[2] == "fail":
    raise RuntimeError("the run failed")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [("end", 0), ("fail", 1)])
def test_a_process_ends_though_its_workers_ignore_signals(split, how, status):
    """At exit, Python sends SIGTERM to the workers and waits for them."""
    command = [sys.executable, "-c", ENDS, str(Path(__file__).parents[1]), how, *split.paths[:8]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (status, "8 1\n")
    assert "killed by signal" not in done.stderr
    assert ("the run failed" in done.stderr) == (how == "fail")


def test_workers_go_on_when_all_processes_are_told_to_stop(split, two_epochs):
    stream = make_stream(split, workers=2)
    first = take(stream, 2)  # one from each worker
    workers = multiprocessing.active_children()
    assert len(workers) >= 2
    # As from Slurm: the sender is not the workers' parent.
    for name in ("TERM", "USR2"):
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    assert_same(first + take(stream, len(two_epochs) - 2), two_epochs)
    assert all(worker.is_alive() for worker in workers)


def test_the_time_that_is_waited_is_counted(split, monkeypatch):
    stream = make_stream(split)
    assert stream.waited == 0
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    take(stream, 4)
    assert stream.waited == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_goes_to_its_device_by_one_copy_and_is_finished_there(split, workers):
    stream = make_stream(split, workers=workers, device=META)
    next(stream)  # fills the caches of constants on the device
    with traffic() as found:
        batches = take(stream, 3)
    assert found.copies == 3
    for batch in batches:
        assert (batch.images.device, batch.labels.device) == (META, META)
        assert batch.images.shape == (8, 3, HEIGHT, WIDTH)
        assert batch.labels.shape == (8,)


def test_a_batch_that_is_there_is_not_copied_again(split, two_epochs):
    batch = two_epochs[0]
    again = batch.to(CPU)
    assert again.images.data_ptr() == batch.images.data_ptr()
    assert again.labels.data_ptr() == batch.labels.data_ptr()
    last = batch.to(CPU, torch.channels_last)
    assert last.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last.images, batch.images)
    assert last.to(CPU, torch.channels_last).images.data_ptr() == last.images.data_ptr()


def test_labels_do_not_keep_the_pixels_alive(two_epochs):
    assert two_epochs[0].labels.untyped_storage().nbytes() == 8 * 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_host_does_not_wait_for_a_gpu_to_finish_a_batch(split, workers):
    stream = make_stream(split, workers=workers, device=torch.device("cuda"))
    next(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        take(stream, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_finishes_the_same_batches(split, two_epochs, workers):
    stream = make_stream(split, workers=workers, device=torch.device("cuda"))
    for found, expected in zip(take(stream, len(two_epochs)), two_epochs, strict=True):
        assert found.images.device.type == "cuda"
        torch.testing.assert_close(found.images.cpu(), expected.images, rtol=0, atol=1e-5)
        assert found.labels.device.type == "cuda"
        assert torch.equal(found.labels.cpu(), expected.labels)
