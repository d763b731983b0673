"""How images that cannot be read are handled, in one process and among ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoreid.data import images
from autoreid.data.datasets import read_dataset
from autoreid.data.loaders import BatchStream
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.transforms import Augmentation
from autoreid.errors import DataError
from tests.helpers.image_folder import (
    CPU,
    assert_pixels,
    prepare,
    prepare_on_rank,
    write_people,
)
from tests.helpers.ranks import run_ranks


@pytest.fixture
def root(tmp_path):
    """A data set `people` of 4 identities with 4 images from 2 cameras, for training."""
    write_people(tmp_path)
    return tmp_path


def spoil(root, kind):
    """Break an image; returns its path and the expected reason."""
    path = root / "people/p2/c1/1.jpg"
    if kind == "empty":
        path.write_bytes(b"")
        return path, "the file is empty"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
        return path, "truncated"
    if kind == "no image":
        path.write_text("no image")
        return path, "unknown image format"
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
        assert note.startswith(f"skipped: {path}: cannot read this image: ")
        assert reason in note
        assert list(found.broken) == [str(path)]
        train = read_dataset(root, "people").train
        left = found.readable(train)
        assert left.paths.tolist() == [other for other in train.paths if other != str(path)]
        assert_pixels(found, left.paths)


def test_an_image_that_may_not_be_read_and_then_may(root, monkeypatch):
    """Its size and time do not change, so the cache is considered valid."""
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
    with pytest.raises(DataError, match=r"the file is empty \(and 3 more\); set data.on_broken_image=skip"):
        prepare(root)
    monkeypatch.setattr(images, "_NAMED", 2)
    *named, rest = prepare(root, on_broken_image="skip").notes
    assert len(named) == 2
    assert rest == "skipped: 2 more images that cannot be read"


def make_stream(split, found):
    sampler = IdentityBalancedSampler(split.identities, 4, 2, seed=1)
    everything = Augmentation(2, 0.5, 0.5, 0.3, 0.3)
    return BatchStream(split, sampler, split.identities, found, everything, 0, CPU)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_folder_that_changes_during_the_run(root, policy):
    """With a cache, nothing is noticed; without, the batch reports the missing file, whatever the policy."""
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


def test_a_node_without_room_decodes_and_all_leave_out_the_same(root):
    (root / "full").write_text("no folder can be made here")
    path, _ = spoil(root, "empty")
    options = {"cache": [root / "good", root / "full"], "on_broken_image": "skip"}
    (_, good, broken, pixels), (_, full, others, same) = run_ranks(
        prepare_on_rank, 2, root, ["a", "b"], options
    )
    assert broken == others
    assert list(broken) == [str(path)]
    np.testing.assert_array_equal(pixels, same)
    assert len(good) == 1
    assert "cannot create the folder" in full[0]
    assert full[1:] == good


def test_a_broken_image_ends_all_ranks_with_the_same_words(root):
    path, _ = spoil(root, "truncated")
    errors = run_ranks(prepare_on_rank, 2, root, ["a", "b"], {}, raises=False)
    assert all(isinstance(error, DataError) for error in errors)
    assert len({str(error) for error in errors}) == 1
    assert str(path) in str(errors[0])
