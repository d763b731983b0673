"""Draw ranked lists: each query with its nearest gallery images, framed in green if they match and red if not.

Shape letters: Q queries, G gallery images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from autoreid.data.decoding import decode
from autoreid.data.records import JUNK
from autoreid.errors import DataError
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.protocol import own_images

RIGHT, WRONG, QUERY = (34, 160, 70), (214, 39, 40), (70, 80, 90)
INK = (30, 30, 30)
#: Sizes in pixels: of an image, of its border, and of the space around it.
IMAGE, BORDER = (72, 144), 5
MARGIN, HEADER, CAPTION = 12, 22, 36
CELL = (IMAGE[0] + 2 * BORDER + 8, IMAGE[1] + 2 * BORDER + CAPTION)


class RankedList(NamedTuple):
    """The first gallery images of a query, in order of increasing distance.

    Attributes:
        gallery: indices into the gallery.
        distances: distances to the query.
        right: whether each image shows the person of the query.
    """

    gallery: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]
    right: npt.NDArray[np.bool_]


def hardest_queries(average_precision: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Return the indices of the `count` queries with the lowest average precision (Q,), lowest first.

    Queries without a match, whose average precision is NaN, are excluded.
    """
    order = np.argsort(average_precision, kind="stable")  # NaN is sorted last
    return order[: min(count, np.count_nonzero(~np.isnan(average_precision)))]


def rank_lists(
    distances: npt.NDArray[np.float32],
    query: FeatureSet,
    gallery: FeatureSet,
    top: int = 10,
    keep_same_camera: bool = False,
) -> list[RankedList]:
    """Return the `top` nearest gallery images of every query by distances (Q, G), with ties in gallery order.

    The query's own image, images with its identity and camera unless `keep_same_camera`, and images of identity JUNK
    are excluded.
    """
    lists = []
    own = own_images(query.paths.tolist(), gallery.paths.tolist())
    for row, identity, camera, itself in zip(distances, query.identities, query.cameras, own, strict=True):
        right = gallery.identities == identity
        counted = gallery.identities != JUNK
        if not keep_same_camera:
            counted &= ~(right & (gallery.cameras == camera))
        if itself >= 0:
            counted[itself] = False
        order = np.argsort(row, kind="stable")
        first = order[counted[order]][:top]
        lists.append(RankedList(first, row[first], right[first]))
    return lists


def draw_ranked_lists(
    lists: list[RankedList],
    query: FeatureSet,
    gallery: FeatureSet,
    average_precision: npt.NDArray[np.float64],
    title: str,
) -> Image.Image:
    """Draw a row for each query and its ranked list, with camera and distance below each image.

    Args:
        lists: ranked lists of the queries, in order.
        query: the Q queries, with the paths of their images.
        gallery: the gallery that `lists` index.
        average_precision: average precision of each query (Q,), shown below its image.
        title: title of the picture.

    Raises:
        DataError: an image cannot be read.
    """
    columns = 1 + max((len(ranked.gallery) for ranked in lists), default=0)
    # There is an additional margin between a query and its list.
    size = (3 * MARGIN + columns * CELL[0], 2 * MARGIN + 2 * HEADER + len(lists) * CELL[1])
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, ImageFont.load_default(16))
    font = ImageFont.load_default(13)
    for column in range(columns):
        middle = _left(column) + BORDER + IMAGE[0] // 2
        draw.text((middle, MARGIN + HEADER), str(column) if column else "query", INK, font=font, anchor="ma")
    for row, ranked in enumerate(lists):
        top = MARGIN + 2 * HEADER + row * CELL[1]
        who = f"id {query.identities[row]}  c{query.cameras[row]}"
        caption = f"{who}\nAP {100 * average_precision[row]:.1f} %"
        _draw_cell(sheet, (_left(0), top), query.paths[row], QUERY, caption)
        for place, (image, distance, right) in enumerate(zip(*ranked, strict=True), start=1):
            caption = f"c{gallery.cameras[image]}  {distance:.4g}"
            colour = RIGHT if right else WRONG
            _draw_cell(sheet, (_left(place), top), gallery.paths[image], colour, caption)
    return sheet


def _left(column: int) -> int:
    return MARGIN + column * CELL[0] + (MARGIN if column else 0)


def _draw_cell(
    sheet: Image.Image, corner: tuple[int, int], path: str, colour: tuple[int, int, int], caption: str
) -> None:
    """Draw an image with its border, and its caption below; `corner` is the upper left corner."""
    draw = ImageDraw.Draw(sheet)
    left, top = corner
    right, bottom = left + IMAGE[0] + 2 * BORDER, top + IMAGE[1] + 2 * BORDER
    draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    sheet.paste(_read_image(path), (left + BORDER, top + BORDER))
    middle = (left + right) // 2
    font = ImageFont.load_default(13)
    draw.multiline_text((middle, bottom + 2), caption, INK, font, anchor="ma", align="center", spacing=2)


def _read_image(path: str) -> Image.Image:
    if not path:
        raise DataError("the features have no image paths, so the images cannot be shown")
    return decode(path).resize(IMAGE, Image.Resampling.BICUBIC)
