"""Check that all results in a folder are from the same images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from autoreid.data.records import ReidDataset
from autoreid.errors import DataError
from autoreid.files import write_atomically
from autoreid.trials.shared_units import claim

#: The name of the file in the folder of a tournament or study.
NAME = "data.json"


def check_same_data(folder: Path, datasets: Mapping[str, ReidDataset], root: Path) -> None:
    """Compare data sets with those that the folder's earlier results are from, and record new ones.

    Only the lists of images are compared, so that a data set may be copied to another disk.

    Args:
        root: the folder that holds the data sets.

    Raises:
        DataError: a data set has other images than before.
    """
    path = folder / NAME
    with claim(folder / "data.lock", wait=True):
        known = json.loads(path.read_bytes()) if path.exists() else {}
        for name, dataset in datasets.items():
            now = _describe(dataset, root / name)
            before = known.setdefault(name, now)
            if before != now:
                raise DataError(
                    f"{root / name}: the results in {folder} are from other images of this data set "
                    f"({before['images']} then, {now['images']} now); choose another --output"
                )
        write_atomically(path, (json.dumps(known, indent=1) + "\n").encode())


def _describe(dataset: ReidDataset, root: Path) -> dict[str, int | str]:
    """Return the number of images, and a digest of their names, identities and cameras."""
    digest = hashlib.sha256()
    splits = (dataset.train, dataset.query, dataset.gallery)
    for split in splits:
        digest.update(f"{split.name} {len(split)}\n".encode())
        for path in split.paths:
            digest.update(f"{os.path.relpath(path, root)}\n".encode(errors="surrogateescape"))
        digest.update(split.identities.tobytes() + split.cameras.tobytes())
    return {"images": sum(map(len, splits)), "digest": digest.hexdigest()[:16]}
