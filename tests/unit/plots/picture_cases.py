"""What a picture must be for people to read it, checked on the picture itself."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator

import pytest

from fjx.plots.palette import EDGE, FAINT, GRID, PAPER
from fjx.plots.text_size import text_width

SVG = "{http://www.w3.org/2000/svg}"
FURNITURE = {"none", PAPER, GRID, EDGE, FAINT}
"""Colours of axes and frames, which mean nothing."""


def texts_of(picture: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def titled(picture: str, start: str) -> list[ElementTree.Element]:
    """The boxes whose text under the pointer begins like this."""
    boxes = []
    for box in ElementTree.fromstring(picture).iter(f"{SVG}rect"):
        title = box.find(f"{SVG}title")
        if title is not None and (title.text or "").startswith(start):
            boxes.append(box)
    return boxes


def check_readable(picture: str, width: int = 900) -> None:
    """No text covers another, nothing leaves the picture, each colour means one thing, which the
    legend says, and ticks are round."""
    root = ElementTree.fromstring(picture)
    assert root.attrib["width"] == f"{width}"
    _check_texts(root)
    _check_shapes(root)
    _check_colors(root)
    _check_ticks(root)


def _check_texts(root: ElementTree.Element) -> None:
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = []
    for text in root.iter(f"{SVG}text"):
        size, words = float(text.attrib["font-size"]), text.text or ""
        wide = text_width(words, size, bold="font-weight" in text.attrib)
        shift = {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]]
        x, bottom = float(text.attrib["x"]) - shift * wide, float(text.attrib["y"])
        boxes.append((x, bottom - 0.75 * size, x + wide, bottom, words))
        assert x >= 0, words
        assert x + wide <= width, words
        assert bottom - 0.75 * size >= 0, words
        assert bottom < height, words
        assert size >= 10, words
    boxes.sort()
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            if other[0] >= one[2]:
                break
            assert one[3] <= other[1] or other[3] <= one[1], (one, other)


def _check_shapes(root: ElementTree.Element) -> None:
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for shape in root:
        for x, y in _corners(shape):
            assert -0.1 <= x <= width + 0.1, ElementTree.tostring(shape)
            assert -0.1 <= y <= height + 0.5, ElementTree.tostring(shape)


def _corners(shape: ElementTree.Element) -> Iterator[tuple[float, float]]:
    values = shape.attrib
    if "points" in values:
        for point in values["points"].split():
            x, y = point.split(",")
            yield float(x), float(y)
    elif "x1" in values:
        yield float(values["x1"]), float(values["y1"])
        yield float(values["x2"]), float(values["y2"])
    elif shape.tag == f"{SVG}rect" and "x" in values:
        x, y = float(values["x"]), float(values["y"])
        yield x, y
        yield x + float(values["width"]), y + float(values["height"])


def _check_colors(root: ElementTree.Element) -> None:
    meanings = defaultdict[str, set[str]](set)
    used = set()
    for shape in root:
        if shape.tag == f"{SVG}text" or shape.attrib.get("width") == "100%":
            continue
        colors = {shape.attrib.get(key, "none") for key in ("fill", "stroke")} - FURNITURE
        legend = shape.attrib.get("data-legend")
        for color in colors:
            if legend is None:
                used.add(color)
            else:
                meanings[color].add(legend)
    assert used <= set(meanings), f"not in the legend: {used - set(meanings)}"
    assert all(len(each) == 1 for each in meanings.values()), dict(meanings)


def _check_ticks(root: ElementTree.Element) -> None:
    axes = defaultdict[str, list[float]](list)
    for text in root.iter(f"{SVG}text"):
        if "data-axis" in text.attrib:
            number = re.match(r"[-\d.,e+]+", text.text or "")
            assert number is not None, text.text
            axes[text.attrib["data-axis"]].append(float(number[0].replace(",", "")))
    for name, ticks in axes.items():
        assert ticks == sorted(set(ticks)), (name, ticks)
        steps = [b - a for a, b in itertools.pairwise(ticks)]
        if steps and min(steps) == pytest.approx(max(steps)):
            assert _is_round(steps[0]), (name, ticks)
            assert ticks[0] / steps[0] == pytest.approx(round(ticks[0] / steps[0])), (name, ticks)
        else:  # by powers of ten, or named one by one
            assert all(_is_round(tick) for tick in ticks if tick), (name, ticks)


def _is_round(value: float) -> bool:
    """Whether it is 1, 2 or 5 times a power of ten."""
    mantissa = value / 10 ** math.floor(math.log10(value) + 1e-9)
    return any(mantissa == pytest.approx(each) for each in (1, 2, 5))
