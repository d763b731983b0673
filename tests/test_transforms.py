from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from autoreid.data.transforms import DEVIATION, MEAN, denormalise, evaluation_transform, training_transform


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
