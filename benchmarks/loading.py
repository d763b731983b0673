"""Training images per second on one core, from the image cache and from files, compared with torchvision's transforms.

python benchmarks/loading.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from autoreid.config import Data, SyntheticPeople
from autoreid.data.datasets import read_dataset
from autoreid.data.images import Images, prepare_images
from autoreid.data.loaders import BatchStream
from autoreid.data.records import Split
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.synthetic.people import write_synthetic_people
from autoreid.data.transforms import DEVIATION, MEAN, Augmentation
from autoreid.distributed import World

HEIGHT, WIDTH, BATCH = 256, 128, 64
CPU = torch.device("cpu")
#: The augmentation of most recipes, and all augmentations.
AUGMENTATIONS = {
    "crop and flip": Augmentation(padding=10, flip=0.5),
    "with erasing and jitter": Augmentation(10, 0.5, erasing=0.5, brightness=0.2, contrast=0.15),
}


class UsualImages(Dataset[Tensor]):
    """Loads one image at a time with PIL and torchvision, as most re-identification code does."""

    def __init__(self, split: Split, augmentation: Augmentation) -> None:
        jitter = augmentation.brightness or augmentation.contrast
        self.split = split
        self.transform = T.Compose(
            [
                T.Resize((HEIGHT, WIDTH), T.InterpolationMode.BICUBIC),
                T.RandomCrop((HEIGHT, WIDTH), padding=augmentation.padding),
                T.RandomHorizontalFlip(augmentation.flip),
                *([T.ColorJitter(augmentation.brightness, augmentation.contrast)] if jitter else []),
                T.ToTensor(),
                T.Normalize(MEAN, DEVIATION),
                *([T.RandomErasing(augmentation.erasing)] if augmentation.erasing else []),
            ]
        )

    def __getitem__(self, index: int) -> Tensor:
        """Return an image with random augmentation."""
        with Image.open(self.split.paths[index]) as file:
            view: Tensor = self.transform(file.convert("RGB"))
        return view


def next_batch_of(split: Split, augmentation: Augmentation, images: Images | None) -> Callable[[], object]:
    """Return a function that loads a batch in this process, from `images` or, if None, with `UsualImages`."""
    sampler = IdentityBalancedSampler(split.identities, BATCH, 4, seed=0)
    if images is not None:
        stream = BatchStream(split, sampler, split.identities, images, augmentation, workers=0, device=CPU)
        return lambda: next(stream)
    chosen = sampler.global_batches().tolist()
    endless = (
        batch
        for _ in iter(int, 1)
        for batch in DataLoader(UsualImages(split, augmentation), batch_sampler=chosen)
    )
    return lambda: next(endless)


def measure(loaders: dict[str, Callable[[], object]], repetitions: int, batches: int) -> dict[str, float]:
    """Return the images per second of each loader, as the median over interleaved repetitions."""
    for load in loaders.values():
        load()
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(repetitions):
        for name, load in loaders.items():
            started = time.perf_counter()
            for _ in range(batches):
                load()
            seconds[name].append(time.perf_counter() - started)
    return {name: batches * BATCH / float(np.median(times)) for name, times in seconds.items()}


def run(root: Path, identities: int, repetitions: int, batches: int) -> dict[str, dict[str, float]]:
    """Generate people, create their image cache, and return the measurements by augmentation."""
    people = SyntheticPeople(train_identities=identities, test_identities=1, distractors=0, junk=0)
    write_synthetic_people(root / "people", people)
    train = read_dataset(root, "people").train
    data = Data(root=root, sources=("people",), height=HEIGHT, width=WIDTH)
    started = time.perf_counter()
    cached = prepare_images(data, {"people-train": train}, World(0, 1, 0, CPU))
    built = len(train) / (time.perf_counter() - started)
    assert not cached.notes, cached.notes
    sources = {"usual": None, "files": Images(HEIGHT, WIDTH), "cache": cached}
    results = {}
    for name, augmentation in AUGMENTATIONS.items():
        loaders = {key: next_batch_of(train, augmentation, images) for key, images in sources.items()}
        speeds = measure(loaders, repetitions, batches)
        ratios = {f"{key}_ratio": speeds[key] / speeds["usual"] for key in ("files", "cache")}
        results[name] = speeds | ratios | {"built": built}
    return results


def main() -> None:
    """Measure, and print a table or a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and repetitions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    identities, repetitions, batches = (16, 5, 2) if arguments.quick else (128, 15, 4)
    with tempfile.TemporaryDirectory() as folder:
        results = run(Path(folder), identities, repetitions, batches)
    if arguments.json:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        print(json.dumps({"benchmark": "loading", **versions, "augmentations": results}))
        return
    print(
        f"JPEG 64×128 to {HEIGHT}×{WIDTH}, batches of {BATCH}, one core; torchvision {torchvision.__version__}"
    )
    print(f"{'images a second':25}{'usual':>8}{'files':>8}{'ratio':>7}{'cache':>8}{'ratio':>7}")
    for name, row in results.items():
        columns = f"{row['usual']:8.0f}{row['files']:8.0f}{row['files_ratio']:7.2f}"
        print(f"{name:25}{columns}{row['cache']:8.0f}{row['cache_ratio']:7.2f}")
    print(f"the cache is created at {row['built']:.0f} images a second")


if __name__ == "__main__":
    main()
