"""Validation pictures: a row a slice, a column an image."""

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_SENTENCE = (
    "SYNTHETIC images, drawn in training, not acquired. Lesions may be missing or invented. "
    "Research use only; not for diagnosis, contouring or dose planning."
)
GAP = 4
HEADER = 14
"""Pixels above the columns for their names."""
SMALLEST = 160
"""Slices are enlarged by a whole number until their longer edge has at least so many pixels."""


def strip(names: Sequence[str], rows: Sequence[Sequence[NDArray[np.float32]]]) -> NDArray[np.uint8]:
    """One picture of several slices, each shown in several images side by side.

    Args:
        names: of the columns.
        rows: one list a slice, holding as many images as there are names: (width, height) with axes in RAS
            order and values in [−1, 1].

    Returns:
        uint8 (height, width), the second axis of the slices upwards.
    """
    shown = [[_upright(image) for image in row] for row in rows]
    width = max(image.shape[1] for row in shown for image in row) + GAP
    heights = [max(image.shape[0] for image in row) + GAP for row in shown]
    lines = textwrap.wrap(_SENTENCE, max(20, width * len(names) // 6))
    canvas = np.zeros((HEADER + sum(heights) + HEADER * len(lines), width * len(names)), np.uint8)
    top = HEADER
    for row, height in zip(shown, heights, strict=True):
        for column, image in enumerate(row):
            left = column * width
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
        top += height
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for column, name in enumerate(names):
        draw.text((column * width + 2, 1), name, fill=255)
    for number, line in enumerate(lines):
        draw.text((2, top + HEADER * number), line, fill=255)
    return np.asarray(picture)


def _upright(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[−1, 1] to [0, 255], the second axis upwards, enlarged where it is small."""
    grey = np.rint((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    factor = -(-SMALLEST // max(grey.shape))
    return np.kron(np.rot90(grey), np.ones((factor, factor), np.uint8))
