"""A small user data set, and what a run does with its images."""

from __future__ import annotations

import socket

import numpy as np
import torch
from PIL import Image

from autoreid.config import Data
from autoreid.data import images
from autoreid.data.datasets import read_dataset
from autoreid.data.images import prepare_images
from autoreid.distributed import World

HEIGHT, WIDTH = 16, 8
CPU = torch.device("cpu")
ALONE = World(0, 1, 0, CPU)


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
    """Return everything in the cache's folder, including hidden files."""
    folder = root / ".image_cache"
    return sorted(folder.iterdir()) if folder.exists() else []


def by_pillow(path):
    with Image.open(path) as file:
        resized = file.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)


def assert_pixels(found, paths):
    for path in paths:
        np.testing.assert_array_equal(found(path), by_pillow(path))


def prepare_on_rank(world, root, hosts, options):
    """Return the prepared images of a rank, and the number of caches that it wrote itself."""
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
