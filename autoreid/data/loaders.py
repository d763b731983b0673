"""Batches of images: an endless, resumable stream for training, and one pass over a split for evaluation."""

from __future__ import annotations

import copy
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoreid.data.images import Images
from autoreid.data.packing import Packed
from autoreid.data.records import Split
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.data.transforms import Augmentation, Finish
from autoreid.distributed import ignore_stop_signals
from autoreid.errors import DataError
from autoreid.seeding import derive_seed


class Batch(NamedTuple):
    """Images with their labels; a loader's batches are already on its device.

    Attributes:
        images: (B, 3, H, W) float32.
        labels: (B,) int64 class labels; for a split that is only embedded, the indices of the images.
        broken: why an image could not be read (a black image replaces it), else None. The error travels with
            the batch because one rank must not fail alone: the training loop agrees on it first.
    """

    images: Tensor
    labels: Tensor
    broken: str | None

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        """Move the batch to a device and memory format; tensors that are already there are not copied."""
        images = self.images.to(device, non_blocking=True, memory_format=memory_format)
        return self._replace(images=images, labels=self.labels.to(device, non_blocking=True))


class _Key(NamedTuple):
    """The images of a batch, the seed of the whole global batch's views, and the images' positions in it."""

    images: list[int]
    seed: int
    share: slice


class _Raw(NamedTuple):
    """A batch as workers return it: cropped pixels and the parameters of the remaining transforms, in one buffer."""

    packed: Packed
    broken: str | None

    def finished(self, device: torch.device) -> Batch:
        """Copy the batch to the device in one transfer and apply the remaining transforms there."""
        tensors = self.packed.to(device).tensors()
        finish = Finish(tensors.get("jitter"), tensors.get("erased"))
        # Cloned, because a view of the labels would keep the pixels' memory alive.
        return Batch(finish(tensors["pixels"]), tensors["labels"].clone(), self.broken)


class _Batches(Dataset[_Raw]):
    """Load whole batches."""

    def __init__(
        self, split: Split, labels: npt.NDArray[np.int64], images: Images, augmentation: Augmentation
    ) -> None:
        self.split, self.labels, self.images, self.augmentation = split, labels, images, augmentation

    def __getitem__(self, key: _Key) -> _Raw:
        height, width = self.images.height, self.images.width
        views = self.augmentation.sample(key.seed, key.share, height, width)
        small = {"labels": torch.from_numpy(self.labels[key.images]), **views.finish._asdict()}
        packed = Packed.of(small, pixels=(len(key.images), 3, height, width))
        pixels = packed.tensors()["pixels"].numpy()
        broken: str | None = None
        for place, index in enumerate(key.images):
            try:
                views.crop(place, self.images(self.split.paths[index]), pixels[place])
            except DataError as error:
                broken = broken or str(error)
        return _Raw(packed, broken)


def _identity(raw: _Raw) -> _Raw:
    return raw


def _start_worker(worker: int) -> None:  # noqa: ARG001
    ignore_stop_signals()
    # At exit, however, Python sends SIGTERM to the remaining workers and waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def _loader(batches: _Batches, keys: Iterable[_Key], workers: int, device: torch.device) -> DataLoader[_Raw]:
    return DataLoader(
        batches,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_identity,  # type: ignore[arg-type]  # the data set returns whole batches
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        # Otherwise each pass would consume numbers from torch's global generator, which checkpoints restore.
        generator=torch.Generator(),
    )


class _Keys:
    """The batches of a sampler, each with a seed that depends on its position in the global sequence."""

    def __init__(self, sampler: IdentityBalancedSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[_Key]:
        sampler = self.sampler
        epoch = sampler.epoch
        for batch, indices in enumerate(sampler, start=sampler.batch):
            yield _Key(indices, derive_seed(sampler.seed, epoch, batch), sampler.share)


class BatchStream:
    """Identity-balanced batches without end, epoch after epoch, resumable at any batch.

    The position counts the batches returned, not those that workers have prefetched. An image's view depends
    only on its position in the global batch, so it is the same for any number of workers and ranks.

    Attributes:
        waited: seconds that the caller has waited for batches.
    """

    def __init__(
        self,
        split: Split,
        sampler: IdentityBalancedSampler,
        labels: npt.NDArray[np.int64],
        images: Images,
        augmentation: Augmentation,
        workers: int,
        device: torch.device,
    ) -> None:
        self.split, self.sampler, self.waited = split, sampler, 0.0
        self._device = device
        self._batches = _Batches(split, labels, images, augmentation)
        self._loader = _loader(self._batches, _Keys(sampler), workers, device)
        self._iterator: Iterator[_Raw] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch; the same on every rank."""
        return len(self.sampler)

    @property
    def labels(self) -> Tensor:
        """All labels that the batches of an epoch have on any rank, (identities,) int64, sorted."""
        return torch.from_numpy(np.unique(self._batches.labels))

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        started = time.monotonic()
        if self._iterator is None or self.sampler.batch == 0:
            self._iterator = iter(self._loader)
        batch = next(self._iterator).finished(self._device)
        self.sampler.advance()
        self.waited += time.monotonic() - started
        return batch

    def preview(self) -> Batch:
        """Load the next batch in this process, without advancing the position."""
        return self._batches[next(iter(_Keys(self.sampler)))].finished(self._device)

    def first_batches(self, epoch: int, count: int) -> Iterator[Batch]:
        """Load the first `count` batches of an epoch in this process, without advancing the position."""
        sampler = copy.copy(self.sampler)
        sampler.epoch, sampler.batch = epoch, 0
        for key in itertools.islice(_Keys(sampler), count):
            yield self._batches[key].finished(self._device)

    def state_dict(self) -> dict[str, int]:
        """Return the sampler's position."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at a saved position, on any number of ranks."""
        self.sampler.load_state_dict(state)
        self._iterator = None


def embedding_batches(
    split: Split,
    indices: npt.NDArray[np.int64],
    images: Images,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Yield the chosen images of a split in order, without augmentation; labels are the image indices."""
    starts = range(0, len(indices), batch_size)
    chosen = [indices[start : start + batch_size].tolist() for start in starts]
    keys = [_Key(some, 0, slice(0, len(some))) for some in chosen]
    batches = _Batches(split, np.arange(len(split)), images, Augmentation())
    for raw in _loader(batches, keys, min(workers, len(keys)), device):
        yield raw.finished(device)
