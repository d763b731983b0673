"""The image cache, alone and among ranks, and what becomes of images that cannot be read."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoreid.config import Data
from autoreid.data import cache, images
from autoreid.data.datasets import read_dataset
from autoreid.data.images import Images, prepare_images
from autoreid.data.loaders import BatchStream
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.transforms import Augmentation
from autoreid.distributed import World
from autoreid.distributed.shared_work import work_while_others_wait
from autoreid.errors import DataError, RunError
from tests.ranks import run_ranks

HEIGHT, WIDTH = 16, 8
CPU = torch.device("cpu")
ALONE = World(0, 1, 0, CPU)


@pytest.fixture
def root(tmp_path):
    """A data set `people` of 4 identities with 4 images by 2 cameras, to train on."""
    write_people(tmp_path)
    return tmp_path


def write_people(root):
    rng = np.random.default_rng(0)
    for person in range(4):
        for number in range(4):
            folder = root / "people" / f"p{person}" / f"c{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")


def of_people(root, **options):
    sizes = {"height": HEIGHT, "width": WIDTH}
    return Data(root=root, sources=("people",), **sizes | options)


def prepare(root, world=ALONE, **options):
    train = read_dataset(root, "people").train
    return prepare_images(of_people(root, **options), {"people-train": train}, world)


def caches(root):
    """Everything in the cache's folder, hidden or not."""
    folder = root / ".image_cache"
    return sorted(folder.iterdir()) if folder.exists() else []


def by_pillow(path):
    with Image.open(path) as file:
        resized = file.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)


def never(*_):
    raise AssertionError("an image was decoded")


def assert_pixels(found, paths):
    for path in paths:
        np.testing.assert_array_equal(found(path), by_pillow(path))


def test_the_caches_pixels_are_those_of_decoding(root, monkeypatch):
    paths = read_dataset(root, "people").train.paths
    assert len(paths) == 16
    found, decoded = prepare(root), Images(HEIGHT, WIDTH)
    (folder,) = caches(root)
    assert folder.name.startswith("people-train-16x8-")
    whole = np.load(folder / "images.npy")
    assert (whole.shape, whole.dtype) == ((16, 3, HEIGHT, WIDTH), np.uint8)
    for row, path in zip(whole, paths, strict=True):
        np.testing.assert_array_equal(row, by_pillow(path))
        np.testing.assert_array_equal(decoded(path), row)
    monkeypatch.setattr(images, "decode", never)
    for row, path in zip(whole, paths, strict=True):
        np.testing.assert_array_equal(found(path), row)
    assert found.notes == ()
    # The file's own memory, and nobody can write to it.
    with pytest.raises(ValueError, match="read-only"):
        found(paths[0])[:] = 0


def test_a_cache_is_made_once(root, monkeypatch):
    prepare(root)
    before = [path.stat().st_mtime_ns for path in caches(root)[0].iterdir()]
    monkeypatch.setattr(cache, "decode", never)
    monkeypatch.setattr(images, "decode", never)
    again = prepare(root)
    assert [path.stat().st_mtime_ns for path in caches(root)[0].iterdir()] == before
    monkeypatch.undo()
    assert_pixels(again, read_dataset(root, "people").train.paths)


def test_it_moves_with_the_data_sets_folder(root, monkeypatch):
    prepare(root)
    moved = root.with_name("moved")
    root.rename(moved)
    monkeypatch.setattr(cache, "decode", never)
    found = prepare(moved)
    monkeypatch.undo()
    assert_pixels(found, read_dataset(moved, "people").train.paths)


def another_size(root):
    return {"height": 2 * HEIGHT}


def another_content(root):
    path = root / "people/p1/c0/0.jpg"
    Image.fromarray(np.zeros((20, 10, 3), np.uint8)).save(path)
    return {}


def another_time(root):
    os.utime(root / "people/p1/c0/0.jpg", (1, 1))
    return {}


def one_less(root):
    (root / "people/p1/c0/0.jpg").unlink()
    return {}


def another_name(root):
    (root / "people/p1/c0/0.jpg").rename(root / "people/p1/c0/zero.jpg")
    return {}


@pytest.mark.parametrize("change", [another_size, another_content, another_time, one_less, another_name])
def test_a_change_makes_another_cache(root, change):
    prepare(root)
    options = change(root)
    found = prepare(root, **options)
    assert len(caches(root)) == 2
    path = read_dataset(root, "people").train.paths[4]
    np.testing.assert_array_equal(found(path), Images(found.height, WIDTH)(path))


def test_without_a_cache_images_are_decoded(root):
    found = prepare(root, cache=None)
    assert caches(root) == []
    assert_pixels(found, read_dataset(root, "people").train.paths)


def test_processes_that_are_sent_images_map_the_same_files(root):
    found = prepare(root)
    sent = pickle.dumps(found)
    (folder,) = caches(root)
    assert len(sent) < (folder / "images.npy").stat().st_size
    assert_pixels(pickle.loads(sent), read_dataset(root, "people").train.paths)  # noqa: S301


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "other"])
def test_a_damaged_cache_is_made_anew(root, damage):
    prepare(root)
    file = caches(root)[0] / "images.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "other":
        np.save(file, np.zeros((2, 3)))
    else:
        file.write_bytes(file.read_bytes()[: 1000 if damage == "cut" else 0])
    found = prepare(root)
    assert len(caches(root)) == 1
    assert_pixels(found, read_dataset(root, "people").train.paths)


def test_what_a_killed_run_left_is_removed_when_it_is_old(root):
    prepare(root)
    (folder,) = caches(root)
    partial = {age: root / ".image_cache" / f".{folder.name}.{age}.partial" for age in ("old", "new")}
    for path in partial.values():
        shutil.copytree(folder, path)
    for path in (*partial["old"].iterdir(), partial["old"]):
        os.utime(path, (1, 1))
    shutil.rmtree(folder)
    prepare(root)
    assert caches(root) == sorted([folder, partial["new"]])


def test_another_run_may_be_faster(root, monkeypatch):
    """It puts its cache in place while this one still decodes."""
    decode_all = cache.decode_all

    def overtaken(paths, height, width):
        monkeypatch.setattr(cache, "decode_all", decode_all)
        prepare(root)
        yield from decode_all(paths, height, width)

    monkeypatch.setattr(cache, "decode_all", overtaken)
    found = prepare(root)
    assert found.notes == ()
    assert len(caches(root)) == 1
    assert_pixels(found, read_dataset(root, "people").train.paths)


# Where there is no room for a cache.


def assert_decodes(root, found, *words):
    (note,) = found.notes
    for word in (*words, "images are decoded each time that they are used"):
        assert word in note
    assert "\n" not in note
    assert_pixels(found, read_dataset(root, "people").train.paths)


def test_a_disk_that_is_too_small_is_noticed_before_it_is_full(root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 6000, 6000))
    found = prepare(root)
    assert_decodes(root, found, str(root / ".image_cache"), "no room for the image cache", "0.00 GB")
    assert caches(root) == []


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_while_the_cache_is_written(root, small_disk, monkeypatch):
    monkeypatch.setattr(cache, "_require_space", lambda *_: None)  # another run takes the space meanwhile
    found = prepare(root, cache=small_disk / "caches", height=HEIGHT * 20)
    (note,) = found.notes
    assert str(small_disk / "caches") in note
    assert "No space left on device" in note
    assert list((small_disk / "caches").iterdir()) == []
    path = read_dataset(root, "people").train.paths[0]
    np.testing.assert_array_equal(found(path), Images(HEIGHT * 20, WIDTH)(path))


def test_a_cache_that_cannot_be_written(root):
    (root / ".image_cache").write_text("a file")
    found = prepare(root)
    assert_decodes(root, found, f"{root / '.image_cache'}: cannot make the folder", "set data.cache")


# Images that cannot be read.


def spoil(root, kind):
    """Breaks an image; its path, and the reason that is told."""
    path = root / "people/p2/c1/1.jpg"
    if kind == "empty":
        path.write_bytes(b"")
        return path, "the file is empty"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
        return path, "truncated"
    if kind == "no image":
        path.write_text("no image")
        return path, "of no known format"
    if kind == "dangling":
        path.unlink()
        path.symlink_to("nowhere.jpg")
        return path, "No such file or directory"
    path.unlink()
    path.mkdir()
    return path, "Is a directory"


KINDS = ["empty", "truncated", "no image", "dangling", "folder"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("again", [False, True])
def test_a_broken_image_ends_a_run_with_its_name_and_reason(root, kind, again):
    path, reason = spoil(root, kind)
    for _ in range(1 + again):
        with pytest.raises(DataError) as error:
            prepare(root)
    message = str(error.value)
    assert message.startswith(f"{path}: cannot read this image: ")
    assert reason in message
    assert "data.on_broken_image=skip" in message
    assert "\n" not in message


@pytest.mark.parametrize("folder", [".image_cache", None])
@pytest.mark.parametrize("kind", KINDS)
def test_or_is_left_out_and_named(root, kind, folder):
    path, reason = spoil(root, kind)
    for _ in range(2):
        found = prepare(root, cache=folder and Path(folder), on_broken_image="skip")
        (note,) = found.notes
        assert note.startswith(f"left out: {path}: cannot read this image: ")
        assert reason in note
        assert list(found.broken) == [str(path)]
        train = read_dataset(root, "people").train
        left = found.readable(train)
        assert left.paths.tolist() == [other for other in train.paths if other != str(path)]
        assert_pixels(found, left.paths)


def test_an_image_that_may_not_be_read_and_then_may(root, monkeypatch):
    """Its size and time do not change, so the cache would be taken for good."""
    path = root / "people/p2/c1/1.jpg"
    opened = Image.open

    def forbidden(name, *arguments, **options):
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied", str(name))
        return opened(name, *arguments, **options)

    monkeypatch.setattr(Image, "open", forbidden)
    with pytest.raises(DataError, match=f"{path}: cannot read this image: Permission denied; "):
        prepare(root)
    assert list(prepare(root, on_broken_image="skip").broken) == [str(path)]
    monkeypatch.undo()
    found = prepare(root)
    assert found.broken == {}
    assert_pixels(found, read_dataset(root, "people").train.paths)


def test_many_broken_images_are_counted(root, monkeypatch):
    for person in range(4):
        (root / f"people/p{person}/c1/1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"the file is empty, nor 3 more of the run's; data.on_broken_image"):
        prepare(root)
    monkeypatch.setattr(images, "_NAMED", 2)
    *named, rest = prepare(root, on_broken_image="skip").notes
    assert len(named) == 2
    assert rest == "left out: 2 more images that cannot be read"


def make_stream(split, found):
    sampler = IdentityBalancedSampler(split.identities, 4, 2, seed=1)
    everything = Augmentation(2, 0.5, 0.5, 0.3, 0.3)
    return BatchStream(split, sampler, split.identities, found, everything, 0, CPU)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_folder_that_changes_during_the_run(root, policy):
    """With a cache nobody notices; without, the batch says what is missing, whatever the policy."""
    train = read_dataset(root, "people").train
    cached = prepare(root, on_broken_image=policy)
    decoded = prepare(root, on_broken_image=policy, cache=None)
    calm = make_stream(train, decoded)
    expected = [next(calm) for _ in range(3 * calm.batches_per_epoch)]
    kept = make_stream(train, cached)
    lost = make_stream(train, decoded)
    assert torch.equal(next(kept).images, expected[0].images)
    next(lost)
    for path in train.paths:
        Path(path).unlink()
    for batch in expected[1:]:
        found = next(kept)
        assert torch.equal(found.images, batch.images)
        assert torch.equal(found.labels, batch.labels)
        assert found.broken is None
        broken = next(lost).broken
        assert broken.endswith("cannot read this image: No such file or directory")
        assert broken.partition(":")[0] in train.paths


# Ranks.


def _on_rank(world, root, hosts, options):
    """What a rank finds, and how many caches it wrote itself."""
    socket.gethostname = lambda: hosts[world.rank]
    written = []
    write = images.write_cache

    def counted(folder, *arguments):
        written.append(folder)
        return write(folder, *arguments)

    images.write_cache = counted
    options = {key: value[world.rank] if isinstance(value, list) else value for key, value in options.items()}
    found = prepare(root, world, **options)
    paths = found.readable(read_dataset(root, "people").train).paths
    return len(written), found.notes, found.broken, np.stack([found(path) for path in paths])


@pytest.mark.parametrize(
    ("hosts", "folders", "written"),
    [
        (["a", "a", "a"], None, [1, 0, 0]),
        (["a", "b", "b"], None, [1, 0, 0]),
        (["a", "b", "b"], ["on-a", "on-b", "on-b"], [1, 1, 0]),
    ],
    ids=["one node", "two nodes, one disk", "two nodes with a disk of their own"],
)
def test_one_rank_a_disk_makes_the_cache(root, hosts, folders, written):
    options = {"cache": [root / name for name in folders]} if folders else {}
    results = run_ranks(_on_rank, 3, root, hosts, options)
    assert [result[0] for result in results] == written
    expected = np.stack([by_pillow(path) for path in read_dataset(root, "people").train.paths])
    for _, notes, _, pixels in results:
        assert notes == ()
        np.testing.assert_array_equal(pixels, expected)


def test_a_node_without_room_decodes_and_all_leave_out_the_same(root):
    (root / "full").write_text("no folder can be made here")
    path, _ = spoil(root, "empty")
    options = {"cache": [root / "good", root / "full"], "on_broken_image": "skip"}
    (_, good, broken, pixels), (_, full, others, same) = run_ranks(_on_rank, 2, root, ["a", "b"], options)
    assert broken == others
    assert list(broken) == [str(path)]
    np.testing.assert_array_equal(pixels, same)
    assert len(good) == 1
    assert "cannot make the folder" in full[0]
    assert full[1:] == good


def test_a_broken_image_ends_all_ranks_with_the_same_words(root):
    path, _ = spoil(root, "truncated")
    errors = run_ranks(_on_rank, 2, root, ["a", "b"], {}, raises=False)
    assert all(isinstance(error, DataError) for error in errors)
    assert len({str(error) for error in errors}) == 1
    assert str(path) in str(errors[0])


def _work(world, failing):
    pieces = []

    def work():
        for piece in range(3 * world.rank):
            pieces.append(piece)
            if world.rank == failing:
                raise ValueError("no good")
            time.sleep(0.01)
            yield
        return f"rank {world.rank}"

    result = work_while_others_wait(work() if world.rank else None, seconds=0.0)
    return result, len(pieces)


def test_ranks_wait_for_each_others_work_and_for_its_failures():
    assert run_ranks(_work, 3, None) == [(None, 0), ("rank 1", 3), ("rank 2", 6)]
    errors = run_ranks(_work, 3, 2, raises=False)
    assert all(isinstance(error, RunError) for error in errors)
    assert {str(error) for error in errors} == {"a rank failed: ValueError: no good"}
