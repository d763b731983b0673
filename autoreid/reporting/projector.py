"""Embeddings for TensorBoard's projector: features, labels and thumbnails of images.

TensorBoard reads `projector_config.pbtxt` in the folder of the event files, which names the files of each embedding.
They are not written by tensorboardX: it leaves the unused end of the picture of thumbnails uninitialised, and adds to
an existing config, so that a second evaluation would show everything twice.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from autoreid.data.decoding import decode
from autoreid.data.records import JUNK
from autoreid.errors import DataError
from autoreid.evaluation.features import FeatureSet
from autoreid.files import make_folder, write_atomically

_log = logging.getLogger(__name__)

_CONFIG = "projector_config.pbtxt"
#: Width and height of a thumbnail in pixels. TensorBoard shows square ones only.
TILE = 64
#: TensorBoard shows the first column that is not a number as the label of a point.
_COLUMNS = ("label", "identity", "camera", "split", "path")


def choose_people(
    query: FeatureSet, gallery: FeatureSet, limit: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the indices of up to `limit` query and gallery images: all images of the first people.

    People are those of the queries, in ascending order of identity, as many as fit. If the first one has more images,
    only the first `limit` of them are chosen.
    """
    people = np.unique(query.identities[query.identities != JUNK])
    everyone = np.concatenate([query.identities, gallery.identities])
    _, counts = np.unique(everyone[np.isin(everyone, people)], return_counts=True)
    fitting = people[: max(1, counts.cumsum().searchsorted(limit, side="right"))]
    of_query, of_gallery = (np.flatnonzero(np.isin(part.identities, fitting)) for part in (query, gallery))
    of_query = of_query[:limit]
    return of_query, of_gallery[: limit - len(of_query)]


def write_embedding(folder: Path, name: str, query: FeatureSet, gallery: FeatureSet, limit: int) -> str:
    """Write the features, labels and thumbnails of up to `limit` images, see `choose_people`.

    If an image cannot be read, a warning says so, and the embedding has no thumbnails.

    Args:
        folder: of the event files; the files are written to projector/NAME below it.
        name: of the embedding, such as SOURCE/TARGET.

    Returns:
        The entry of the config.

    Raises:
        RunError: a file cannot be written.
    """
    chosen = choose_people(query, gallery, limit)
    parts = {"query": query.select(chosen[0]), "gallery": gallery.select(chosen[1])}
    features = io.BytesIO()
    np.savetxt(features, np.concatenate([part.features for part in parts.values()]), "%.7g", "\t")
    rows = [_COLUMNS]
    for split, part in parts.items():
        for identity, camera, path in zip(part.identities, part.cameras, part.paths, strict=True):
            label = f"{identity} c{camera} {split}"
            rows.append((label, str(identity), str(camera), split, " ".join(path.split())))
    metadata = "".join("\t".join(row) + "\n" for row in rows)
    # A file name that is not UTF-8 has lone surrogates.
    files = {"tensors.tsv": features.getvalue(), "metadata.tsv": metadata.encode(errors="backslashreplace")}
    paths = [path for part in parts.values() for path in part.paths.tolist()]
    try:
        data = io.BytesIO()
        thumbnails(paths).save(data, "png")
        files["sprite.png"] = data.getvalue()
    except DataError as error:
        _log.warning("%s: the projector has no thumbnails: %s", name, error)
    inside = f"projector/{name}"
    make_folder(folder / inside, "set another --output")
    for file, content in files.items():
        write_atomically(folder / inside / file, content)
    return _entry(name, {file: f"{inside}/{file}" for file in files})


def _entry(name: str, files: Mapping[str, str]) -> str:
    """Return the entry of the config for an embedding; `files` has the path of each file, relative to the config."""
    quoted = {file: json.dumps(path, ensure_ascii=False) for file, path in files.items()}
    lines = [
        f"tensor_name: {json.dumps(name, ensure_ascii=False)}",
        f"tensor_path: {quoted['tensors.tsv']}",
        f"metadata_path: {quoted['metadata.tsv']}",
    ]
    if "sprite.png" in quoted:
        size = f"single_image_dim: {TILE} single_image_dim: {TILE}"
        lines.append(f"sprite {{ image_path: {quoted['sprite.png']} {size} }}")
    return "\n".join(["embeddings {", *(f"  {line}" for line in lines), "}\n"])


def write_config(folder: Path, entries: Sequence[str]) -> None:
    """Write the config for TensorBoard, with the entries of all embeddings; replaces an earlier one.

    Raises:
        RunError: the file cannot be written.
    """
    write_atomically(folder / _CONFIG, "".join(entries).encode())


def remove_config(folder: Path) -> None:
    """Remove the config of an earlier evaluation, so that TensorBoard does not show its embeddings."""
    (folder / _CONFIG).unlink(missing_ok=True)


def thumbnails(paths: Sequence[str]) -> Image.Image:
    """Return the images, made smaller, as tiles of a square picture, row by row from the upper left corner.

    Each keeps its aspect ratio in the centre of its tile; the rest is transparent.

    Raises:
        DataError: an image cannot be read, or its path is empty.
    """
    if not all(paths):
        raise DataError("the features have no image paths")
    columns = math.isqrt(len(paths) - 1) + 1
    sheet = Image.new("RGBA", (columns * TILE, columns * TILE))
    for number, path in enumerate(paths):
        image = decode(path)
        image = image.resize(_fitting(image.size), Image.Resampling.BICUBIC)
        row, column = divmod(number, columns)
        left, top = ((TILE - side) // 2 for side in image.size)
        sheet.paste(image, (column * TILE + left, row * TILE + top))
    return sheet


def _fitting(size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height with the same ratio that just fit into a tile."""
    width, height = (max(1, round(side * TILE / max(size))) for side in size)
    return width, height
