from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from autoreid.data import transforms
from autoreid.data.decoding import resize
from autoreid.data.transforms import (
    DEVIATION,
    MEAN,
    Augmentation,
    Finish,
    _erase_masked,
    _erase_slices,
    denormalise,
    normalise,
)
from tests.helpers.traffic import META, traffic

HEIGHT, WIDTH = 24, 16


def picture(size=(30, 50)):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def see(augmentation, count, seed=0, share=None, pixels=None):
    """Crop the views of one image, as for a batch."""
    pixels = resize(picture(), HEIGHT, WIDTH) if pixels is None else pixels
    share = share or slice(0, count)
    views = augmentation.sample(seed, share, *pixels.shape[1:])
    out = np.zeros((share.stop - share.start, *pixels.shape), np.uint8)
    for place, image in enumerate(out):
        views.crop(place, pixels, image)
    return views.finish(torch.from_numpy(out))


def test_evaluation_is_a_bicubic_resize_and_a_normalisation():
    found = normalise(torch.from_numpy(resize(picture(), 32, 16))[None])[0]
    resized = np.asarray(picture().resize((16, 32), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = (resized - np.array(MEAN)) / np.array(DEVIATION)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected).permute(2, 0, 1), rtol=0, atol=1e-5)
    assert (MEAN, DEVIATION) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_every_colour_is_normalised_to_the_same_bits_as_torchvisions():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    expected = F.normalize(F.to_dtype(pixels, torch.float32, scale=True), list(MEAN), list(DEVIATION))
    assert torch.equal(normalise(pixels).view(torch.int32), expected.view(torch.int32))


def test_without_anything_random_all_views_are_the_image():
    plain = normalise(torch.from_numpy(resize(picture(), HEIGHT, WIDTH))[None])
    assert torch.equal(see(Augmentation(), 3), plain.expand(3, -1, -1, -1))
    assert torch.equal(see(Augmentation(flip=1.0), 3), plain.flip(3).expand(3, -1, -1, -1))


def test_crops_are_windows_of_a_padded_image_and_mirrored_half_the_time():
    """Every window of the padded image occurs, with equal frequency."""
    padding, count = 2, 4000
    inner = normalise(torch.from_numpy(resize(picture(), HEIGHT, WIDTH))[None])[0]
    black = (-torch.tensor(MEAN) / torch.tensor(DEVIATION))[:, None, None]
    framed = black.expand(3, HEIGHT + 2 * padding, WIDTH + 2 * padding).clone()
    framed[:, padding:-padding, padding:-padding] = inner
    windows = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = framed[:, top : top + HEIGHT, left : left + WIDTH]
            for mirrored in (False, True):
                seen = window.flip(2) if mirrored else window
                windows[(seen * 1000).round().numpy().tobytes()] = (top, left, mirrored)
    assert len(windows) == 50
    views = see(Augmentation(padding=padding, flip=0.25), count)
    # Maps pixels to windows; any other view is a KeyError.
    found = [windows[(view * 1000).round().numpy().tobytes()] for view in views]
    assert np.mean([mirrored for *_, mirrored in found]) == pytest.approx(0.25, abs=0.03)
    corners, counts = np.unique([place[:2] for place in found], axis=0, return_counts=True)
    assert len(corners) == 25
    # Five standard deviations of a binomial count.
    np.testing.assert_allclose(counts, count / 25, atol=5 * np.sqrt(count / 25))


def test_padding_may_be_wider_than_the_image():
    """torchvision's crops of the same windows; some contain no part of the image."""
    pixels = resize(picture(), 6, 4)
    augmentation = Augmentation(padding=9)
    views = augmentation.sample(0, slice(0, 60), 6, 4)
    framed = F.pad(torch.from_numpy(pixels), [9, 9, 9, 9])
    for (down, right), found in zip(views.shift, see(augmentation, 60, pixels=pixels), strict=True):
        expected = F.crop(framed, int(down) + 9, int(right) + 9, 6, 4)
        assert torch.equal(found, normalise(expected[None])[0])


@pytest.mark.parametrize(("brightness", "contrast"), [(0.4, 0.0), (0.0, 0.4), (0.4, 0.3), (1.5, 1.5)])
def test_jitter_is_torchvisions_with_factors_of_each_images_own(brightness, contrast):
    rng = np.random.default_rng(2)
    pixels = torch.from_numpy(rng.integers(0, 256, (40, 3, 12, 8), dtype=np.uint8))
    views = Augmentation(brightness=brightness, contrast=contrast).sample(3, slice(0, 40), 12, 8)
    found = views.finish(pixels)
    factors = views.finish.jitter
    for image, (light, spread, first), seen in zip(pixels, factors.tolist(), found, strict=True):
        steps = [(F.adjust_brightness, light), (F.adjust_contrast, spread)]
        for adjust, factor in steps if first else steps[::-1]:
            image = adjust(F.to_dtype(image, torch.float32, scale=True), factor)
        expected = F.normalize(image, list(MEAN), list(DEVIATION))
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)
    for column, strength in ((0, brightness), (1, contrast)):
        low, high = max(0, 1 - strength), 1 + strength
        values = factors[:, column]
        assert ((values >= low) & (values <= high)).all()
        if strength:
            assert values.min() < low + 0.15 * (high - low)
            assert values.max() > high - 0.15 * (high - low)
    assert 8 < factors[:, 2].sum() < 32


def rectangles(augmentation, count, height, width):
    erased = augmentation.sample(7, slice(0, count), height, width).finish.erased.double()
    top, left, bottom, right = erased.T
    return top, left, bottom - top, right - left


@pytest.mark.parametrize("size", [(256, 128), (24, 24), (64, 12)])
def test_erased_rectangles_are_distributed_as_torchvisions(size):
    count = 3000
    top, left, rows, columns = rectangles(Augmentation(erasing=1.0), count, *size)
    torch.manual_seed(0)
    erasing, image = v2.RandomErasing(1.0), torch.zeros(3, *size)
    theirs = [erasing.make_params([image]) for _ in range(count)]
    whole = [(one["i"], one["j"], one["h"], one["w"]) for one in theirs if one["v"] is not None]
    assert (rows > 0).double().mean() == pytest.approx(len(whole) / count, abs=0.03)
    some = rows > 0
    mine = torch.stack([top, left, rows, columns], 1)[some]
    for found, expected in zip(mine.T, torch.tensor(whole, dtype=torch.float64).T, strict=True):
        error = torch.sqrt((found.var() + expected.var()) / count)
        assert abs(found.mean() - expected.mean()) < 5 * error
        assert found.std() == pytest.approx(expected.std().item(), rel=0.1)


def test_erasing_sets_the_rectangle_to_the_mean_colour_with_its_probability():
    augmentation = Augmentation(erasing=0.3)
    pixels = resize(picture(), HEIGHT, WIDTH)
    plain, found = see(Augmentation(), 1, pixels=pixels)[0], see(augmentation, 400, pixels=pixels)
    top, left, bottom, right = augmentation.sample(0, slice(0, 400), HEIGHT, WIDTH).finish.erased.T
    hit = 0
    for image, y, x, y_end, x_end in zip(found, top, left, bottom, right, strict=True):
        expected = plain.clone()
        expected[:, y:y_end, x:x_end] = 0
        assert torch.equal(image, expected)
        hit += not torch.equal(image, plain)
    assert hit / 400 == pytest.approx(0.3, abs=0.1)


@given(st.data(), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
def test_erasing_by_a_mask_is_erasing_by_slices(data, count, height, width):
    images = torch.rand(count, 3, height, width) - 0.5
    sides = [st.lists(st.integers(0, size), min_size=2, max_size=2).map(sorted) for size in (height, width)]
    chosen = [[data.draw(side) for side in sides] for _ in range(count)]  # includes empty and full ones
    rectangles = torch.tensor([[rows[0], columns[0], rows[1], columns[1]] for rows, columns in chosen])
    masked, sliced = images.clone(), images.clone()
    _erase_masked(masked, rectangles)
    _erase_slices(sliced, rectangles)
    assert torch.equal(masked.view(torch.int32), sliced.view(torch.int32))
    for image, plain, (top, left, bottom, right) in zip(masked, images, rectangles.tolist(), strict=True):
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert not image[:, inside].any()
        assert torch.equal(image[:, ~inside], plain[:, ~inside])


def test_a_device_finishes_without_the_host():
    normalise(torch.zeros(1, 3, 8, 6, dtype=torch.uint8, device=META))  # fills the cache of constants
    finish = Augmentation(erasing=0.5, brightness=0.4, contrast=0.4).sample(0, slice(0, 4), 8, 6).finish
    there = Finish(*(tensor.to(META) for tensor in finish))
    pixels = torch.zeros(4, 3, 8, 6, dtype=torch.uint8, device=META)
    with traffic() as found:
        images = there(pixels)
    assert found.copies == 0
    assert (images.device, images.dtype, images.shape) == (META, torch.float32, pixels.shape)


def test_statistics_made_while_embedding_serve_training():
    """Tensors created in inference mode cannot be used everywhere."""
    transforms._statistics.cache_clear()
    with torch.inference_mode():
        normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (normalise(torch.full((1, 3, 2, 2), 9, dtype=torch.uint8)) * weight).sum().backward()
    assert weight.grad.isfinite().all()


@given(
    st.integers(0, 2**63 - 1),
    st.integers(1, 12),
    st.data(),
    st.sampled_from(
        [
            Augmentation(padding=3, flip=0.5),
            Augmentation(erasing=0.8),
            Augmentation(2, 0.5, 0.5, 0.4, 0.4, 0.5),
        ]
    ),
)
def test_a_share_of_a_batch_has_the_views_of_the_whole(seed, count, data, augmentation):
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    whole = see(augmentation, count, seed)
    assert torch.equal(see(augmentation, 0, seed, slice(start, stop)), whole[start:stop])


def test_autoaugment_is_torchvisions_with_its_probability_and_leaves_the_runs_random_numbers_alone():
    pixels = resize(picture(), HEIGHT, WIDTH)
    before = torch.get_rng_state()
    views = Augmentation(autoaugment=0.25).sample(3, slice(0, 400), HEIGHT, WIDTH)
    share = (views.policies >= 0).mean()
    assert share == pytest.approx(0.25, abs=0.1)
    changed = 0
    for place, policy in enumerate(views.policies[:60].tolist()):
        found, expected = np.zeros_like(pixels), torch.from_numpy(pixels.copy())
        views.crop(place, pixels, found)
        if policy >= 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(policy)
                expected = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)(expected)
        np.testing.assert_array_equal(found, expected.numpy())
        changed += not np.array_equal(found, pixels)
    assert changed >= 5
    assert torch.equal(torch.get_rng_state(), before)
    assert len({*views.policies.tolist()}) > 50, "each image has its own"


def test_another_seed_gives_other_views():
    augmentation = Augmentation(padding=3, flip=0.5)
    assert torch.equal(see(augmentation, 8, seed=1), see(augmentation, 8, seed=1))
    assert not torch.equal(see(augmentation, 8, seed=1), see(augmentation, 8, seed=2))
    # Augmentations use independent random numbers: enabling erasing does not change crops and flips.
    erased = replace(augmentation, erasing=0.5, autoaugment=0.5)
    mine, other = (one.sample(5, slice(0, 8), HEIGHT, WIDTH) for one in (augmentation, erased))
    np.testing.assert_array_equal(mine.shift, other.shift)
    np.testing.assert_array_equal(mine.mirrored, other.mirrored)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_gpu_finishes_as_the_cpu():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 3, 64, 32), dtype=np.uint8))
    finish = Augmentation(erasing=0.5, brightness=0.4, contrast=0.4).sample(0, slice(0, 16), 64, 32).finish
    for one in (finish, Finish(None, None)):
        there = Finish(*(None if tensor is None else tensor.cuda() for tensor in one))
        found = there(pixels.cuda())
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), one(pixels), rtol=0, atol=1e-5)


def test_denormalise_gives_the_pixels_back():
    pixels = torch.from_numpy(np.asarray(picture((16, 32))).copy()).permute(2, 0, 1)
    normalised = normalise(pixels[None])[0]
    found = denormalise(torch.stack([normalised, normalised * 100]))
    assert found.dtype == torch.uint8
    assert torch.equal(found[0], pixels)
    assert set(found[1].unique().tolist()) <= {*range(256)}
    assert {0, 255} <= set(found[1].unique().tolist())
