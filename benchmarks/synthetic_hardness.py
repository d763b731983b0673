"""The difficulty of the synthetic people: mAP and rank-1 of chance, colour histograms and a small network.

    python benchmarks/synthetic_hardness.py [--quick] [--domain N] [--json]

The data set serves its purpose if an untrained network ranks about as well as chance, colour alone is not enough, and
training improves the ranking of unseen people.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from autoreid.config import SyntheticPeople
from autoreid.data.datasets.market1501 import read_market1501
from autoreid.data.records import ReidDataset, Split
from autoreid.data.synthetic.people import write_synthetic_people
from autoreid.evaluation import evaluate_retrieval

HEIGHT, WIDTH = 64, 32


def load_pixels(
    split: Split, mode: str = "RGB", size: tuple[int, int] | None = None
) -> npt.NDArray[np.uint8]:
    """Return the images (N, H, W, 3) of a split, resized to `size` (width, height) if it is given."""
    images = []
    for path in split.paths:
        with Image.open(path) as image:
            picture = image.convert("RGB")
        images.append(np.asarray((picture.resize(size) if size else picture).convert(mode)))
    return np.stack(images)


def colour_histograms(split: Split, stripes: int) -> npt.NDArray[np.float64]:
    """Return the square roots of HSV histograms (8×8×4 bins) of horizontal stripes, (N, stripes · 256).

    Only the middle half of the columns is used, because the rest is mostly background, which is the same for all people
    seen by a camera.
    """
    pixels = load_pixels(split, "HSV").astype(np.int64)
    W = pixels.shape[2]
    pixels = pixels[:, :, W // 4 : W - W // 4]
    N, H = pixels.shape[:2]
    bins = (pixels[..., 0] // 32 * 8 + pixels[..., 1] // 32) * 4 + pixels[..., 2] // 64
    stripe = np.arange(H) * stripes // H
    index = (np.arange(N)[:, None, None] * stripes + stripe[:, None]) * 256 + bins
    counts = np.bincount(index.ravel(), minlength=N * stripes * 256).reshape(N, -1)
    return np.sqrt(counts / pixels[0, ..., 0].size)


class Block(nn.Module):
    """A residual block that halves height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(3))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/2, W/2)."""
        y = self.norms[1](self.second(F.relu(self.norms[0](self.first(x_BCHW)))))
        return F.relu(y + self.norms[2](self.skip(x_BCHW)))


class SmallNet(nn.Module):
    """A small residual network, which returns pooled features in evaluation mode and logits in training mode."""

    def __init__(self, num_identities: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(3, 32), Block(32, 64), Block(64, 128))
        self.neck = nn.BatchNorm1d(4 * 128)
        self.classifier = nn.Linear(4 * 128, num_identities, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 4 * 128), one vector for each quarter of the height, or logits."""
        features = F.adaptive_avg_pool2d(self.blocks(images), (4, 1)).flatten(1)
        logits: Tensor = self.neck(features)
        return self.classifier(logits) if self.training else logits


def to_tensor(split: Split) -> Tensor:
    """Return the images (N, 3, HEIGHT, WIDTH) with values from -1 to 1."""
    pixels = torch.from_numpy(load_pixels(split, size=(WIDTH, HEIGHT)))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def train(net: SmallNet, split: Split, epochs: int, batch: int = 64) -> None:
    """Train a network with cross-entropy over identities, and random flips, shifts and colour changes."""
    images = to_tensor(split)
    labels = torch.from_numpy(np.unique(split.identities, return_inverse=True)[1])
    optimizer = torch.optim.Adam(net.parameters(), weight_decay=5e-4)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
            loss = F.cross_entropy(net(augment(images[chosen])), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def augment(images: Tensor) -> Tensor:
    """Apply a random shift, flip and colour change to each image of the batch."""
    B = len(images)
    gain = torch.empty(B, 3, 1, 1).uniform_(0.8, 1.25) * torch.empty(B, 1, 1, 1).uniform_(0.8, 1.25)
    theta = torch.eye(2, 3).repeat(B, 1, 1)
    theta[:, 0, 0] = torch.randint(0, 2, (B,)) * 2.0 - 1
    theta[:, :, 2] = torch.empty(B, 2).uniform_(-0.1, 0.1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return ((moved + 1) * gain - 1).clamp(-1, 1)


@torch.no_grad()
def embed(net: SmallNet, split: Split) -> Tensor:
    """Return the features (N, D) of a split in evaluation mode."""
    net.eval()
    return torch.cat([net(images) for images in to_tensor(split).split(256)])


def measure(dataset: ReidDataset, epochs: int) -> dict[str, dict[str, float]]:
    """Return mAP and rank-1 of each ranking."""

    def score(query: object, gallery: object) -> dict[str, float]:
        queries, images = dataset.query, dataset.gallery
        result = evaluate_retrieval(
            np.asarray(query),
            np.asarray(gallery),
            queries.identities,
            images.identities,
            queries.cameras,
            images.cameras,
            metric="cosine",
        )
        return {"map": round(result.map, 4), "rank1": round(result.cmc[1], 4)}

    rng = np.random.default_rng(0)
    chance = [
        score(rng.standard_normal((len(dataset.query), 64)), rng.standard_normal((len(dataset.gallery), 64)))
        for _ in range(10)
    ]
    scores = {"chance": {key: round(float(np.mean([c[key] for c in chance])), 4) for key in chance[0]}}
    for name, stripes in (("colour histogram", 1), ("striped histogram", 6)):
        features = (colour_histograms(split, stripes) for split in (dataset.query, dataset.gallery))
        scores[name] = score(*features)
    torch.manual_seed(0)
    net = SmallNet(dataset.train.num_identities)
    scores["untrained net"] = score(embed(net, dataset.query), embed(net, dataset.gallery))
    train(net, dataset.train, epochs)
    scores["trained net"] = score(embed(net, dataset.query), embed(net, dataset.gallery))
    return scores


def main() -> None:
    """Generate the people, measure, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="train for 10 epochs instead of 60")
    parser.add_argument("--domain", type=int, default=0, help="domain of the synthetic people (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    people = SyntheticPeople(domain=arguments.domain)
    epochs = 10 if arguments.quick else 60
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "people"
        start = time.perf_counter()
        write_synthetic_people(root, people)
        seconds = time.perf_counter() - start
        dataset = read_market1501(root)
        scores = measure(dataset, epochs)
        images = sum(1 for _ in root.glob("*/*.jpg"))
    report = {
        "domain": people.domain,
        "epochs": epochs,
        "images": images,
        "drawn_per_s": round(images / seconds),
    }
    if arguments.json:
        print(json.dumps({**report, "scores": scores}))
        return
    print(", ".join(f"{key} {value}" for key, value in report.items()))
    print(f"{'ranked by':<20}{'mAP':>8}{'rank-1':>8}")
    for name, score in scores.items():
        print(f"{name:<20}{score['map']:>8.1%}{score['rank1']:>8.1%}")


if __name__ == "__main__":
    main()
