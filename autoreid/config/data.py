"""The section `data`: data sets, batches and augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from autoreid.config.section import Count, CountOrZero, ExpandedPath, Fraction, Section, first_duplicate

#: The name of a data set is that of a folder, not a path.
DataName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class SyntheticPeople(Section):
    """A data set of synthetic people. Equal settings give equal files."""

    train_identities: Count = 64
    """Number of people in the training set."""
    test_identities: Count = 32
    """Number of other people, in query and gallery."""
    images_per_identity: Count = 16
    """Images of each person, either all in the training set or divided between query and gallery."""
    cameras: Annotated[int, Field(ge=2)] = 4
    """Number of cameras; each of them sees every person."""
    distractors: CountOrZero = 32
    """Gallery images of people who are not in the query set."""
    junk: CountOrZero = 16
    """Badly cropped gallery images, which a ranking must ignore."""
    height: Annotated[int, Field(ge=32)] = 128
    """Image height in pixels."""
    width: Annotated[int, Field(ge=16)] = 64
    """Image width in pixels."""
    domain: CountOrZero = 0
    """Number of the domain. Domains differ in the style of their cameras and in their people."""
    shift: Literal["colour", "local"] = "colour"
    """How domains differ. colour: in the colours of their cameras. local: also in texture, shading, local contrast and
    blur, which change with place, so that an instance norm in the first layers does not remove them."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Random seed."""

    @model_validator(mode="after")
    def _queries_have_matches(self) -> SyntheticPeople:
        if self.images_per_identity < self.cameras + 2:
            raise ValueError(
                f"images_per_identity {self.images_per_identity} leaves queries without a match:"
                f" with {self.cameras} cameras expected at least {self.cameras + 2}"
            )
        return self


class Data(Section):
    """Data sets, batches and augmentation."""

    root: ExpandedPath
    """Folder that holds the data sets, each in a folder of its own."""
    sources: Annotated[tuple[DataName, ...], Field(min_length=1)] = ("market1501",)
    """Data sets to train on, joined into one: published ones by name, or folders below `root`."""
    targets: tuple[DataName, ...] = ()
    """Data sets to evaluate on with `evaluation.split: test`; if empty, the sources."""
    combine_all: bool = False
    """Train on the sources' query and gallery too, except distractors. The targets must then be other data sets."""
    synthetic: dict[DataName, SyntheticPeople] = {}  # noqa: RUF012 (pydantic copies it)
    """Sources and targets that are synthetic people; they are drawn and saved below `root` if they do not exist."""
    height: Count = 256
    """Image height in pixels."""
    width: Count = 128
    """Image width in pixels."""
    batch_size: Count = 64
    """Images in a global batch; each rank takes an equal share."""
    images_per_identity: Count = 4
    """K: images of each identity in a batch."""
    mix_cameras: bool = False
    """Take the K images of an identity from several cameras where that is possible, so that a triplet loss has
    positives from other cameras; false chooses them at random. Every image is used equally often in both cases."""
    alpha_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of each identity's training images that train the alphas; the others train the weights."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the training identities that are not trained on but used to evaluate retrieval."""
    padding: CountOrZero = 10
    """Pixels of padding on each side, before a random crop to height × width."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    erasing: Fraction = 0.0
    """Probability of random erasing (arXiv 1708.04896)."""
    brightness: Fraction = 0.0
    """Strength of random brightness."""
    contrast: Fraction = 0.0
    """Strength of random contrast."""
    autoaugment: Fraction = 0.0
    """Probability that AutoAugment's policy for ImageNet (arXiv 1805.09501) changes an image before it is cropped."""
    cache: ExpandedPath | None = Path(".image_cache")
    """Folder for decoded and resized images, below `root` unless it is absolute; null decodes them each time."""
    on_broken_image: Literal["error", "skip"] = "error"
    """If an image cannot be read: error stops the run at its start; skip leaves the image out and logs it."""
    workers: CountOrZero = 4
    """Loader processes per rank for each of the two training streams; 0 loads in the main process."""

    @model_validator(mode="after")
    def _check(self) -> Data:
        for key in ("sources", "targets"):
            if duplicate := first_duplicate(getattr(self, key)):
                raise ValueError(f"{key}: duplicate entry {duplicate}")
        return self
