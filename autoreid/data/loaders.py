"""Images from disk: endless training batches that can be resumed at any one, and a pass over a split."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoreid.data.decoding import decode
from autoreid.data.records import Split
from autoreid.data.sampler import IdentityBalancedSampler
from autoreid.distributed import ignore_stop_signals
from autoreid.errors import DataError
from autoreid.seeding import derive_seed


class Batch(NamedTuple):
    """Images with their identities' labels.

    Attributes:
        images: (B, 3, H, W) float32.
        labels: (B,) int64; for a split that is only embedded, the images' indices.
        broken: what is wrong with an image that could not be read (zeros stand in for it), else None. It travels
            with the batch because one rank must not fail alone: the loop agrees on it first.
    """

    images: Tensor
    labels: Tensor
    broken: str | None

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        """The batch on a device."""
        images = self.images.to(device, non_blocking=True, memory_format=memory_format)
        return self._replace(images=images, labels=self.labels.to(device, non_blocking=True))


class _Key(NamedTuple):
    """Which image, and the seed that its augmentation draws from."""

    image: int
    seed: int


class _Images(Dataset[tuple[Tensor, int, str | None]]):
    def __init__(
        self,
        split: Split,
        labels: npt.NDArray[np.int64],
        transform: Callable[[Any], Tensor],
        shape: tuple[int, int],
    ) -> None:
        self.split, self.labels, self.transform, self.shape = split, labels, transform, shape

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: _Key) -> tuple[Tensor, int, str | None]:
        path = self.split.paths[key.image]
        label = int(self.labels[key.image])
        try:
            picture = decode(path)
        except DataError as error:
            return torch.zeros(3, *self.shape), label, str(error)
        # A sample's augmentation is its own, whichever worker or rank makes it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key.seed)
            return self.transform(picture), label, None


def _collate(samples: list[tuple[Tensor, int, str | None]]) -> Batch:
    images, labels, broken = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), next(filter(None, broken), None))


def _start_worker(worker: int) -> None:  # noqa: ARG001
    ignore_stop_signals()
    # But when Python exits it sends SIGTERM to workers that are left, and waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()


def _leave_with_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def _loader(images: _Images, keys: Any, workers: int, pin_memory: bool) -> DataLoader[Batch]:
    return DataLoader(
        images,  # type: ignore[arg-type]  # what is collated is a Batch
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # Else each pass over the data would draw from torch's own generator, which a checkpoint restores.
        generator=torch.Generator(),
    )


class _KeyedBatches:
    """A sampler's batches with a seed for each sample, by its place in the global sequence of batches."""

    def __init__(self, sampler: IdentityBalancedSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[_Key]]:
        sampler = self.sampler
        epoch = sampler.epoch
        for batch, indices in enumerate(sampler, start=sampler.batch):
            slots = enumerate(indices, start=sampler.share.start)
            yield [_Key(index, derive_seed(sampler.seed, epoch, batch, slot)) for slot, index in slots]


class BatchStream:
    """Identity-balanced batches without end, epoch after epoch, resumable at any batch.

    What the workers have loaded ahead does not count: the position is that of the batches handed out.
    """

    def __init__(
        self,
        split: Split,
        sampler: IdentityBalancedSampler,
        labels: npt.NDArray[np.int64],
        transform: Callable[[Any], Tensor],
        shape: tuple[int, int],
        workers: int,
        pin_memory: bool,
    ) -> None:
        self.sampler = sampler
        self._images = _Images(split, labels, transform, shape)
        self._loader = _loader(self._images, _KeyedBatches(sampler), workers, pin_memory)
        self._iterator: Iterator[Batch] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Equal on every rank."""
        return len(self.sampler)

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None or self.sampler.batch == 0:
            self._iterator = iter(self._loader)
        batch = next(self._iterator)
        self.sampler.advance()
        return batch

    def preview(self) -> Batch:
        """The batch that comes next, loaded here and now; the position stays."""
        keys = next(iter(_KeyedBatches(self.sampler)))
        return _collate([self._images[key] for key in keys])

    def state_dict(self) -> dict[str, int]:
        """The sampler's position."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a saved position, on any number of ranks."""
        self.sampler.load_state_dict(state)
        self._iterator = None


def embedding_batches(
    split: Split,
    indices: npt.NDArray[np.int64],
    transform: Callable[[Any], Tensor],
    shape: tuple[int, int],
    batch_size: int,
    workers: int,
) -> Iterator[Batch]:
    """The chosen images of a split in order; a batch's labels are the images' indices."""
    keys = [
        [_Key(int(i), 0) for i in indices[at : at + batch_size]] for at in range(0, len(indices), batch_size)
    ]
    images = _Images(split, np.arange(len(split)), transform, shape)
    yield from _loader(images, keys, min(workers, len(keys)), pin_memory=False)
