"""What a picture must be for people to read it."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree

from fjx.sharding.svg import text_width

SVG = "{http://www.w3.org/2000/svg}"


def texts_of(picture: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def check_readable(picture: str, width: int) -> None:
    """No text covers another, leaves the picture or is too small."""
    root = ElementTree.fromstring(picture)
    assert root.attrib["width"] == f"{width}"
    boxes = []
    for text in root.iter(f"{SVG}text"):
        size, words = float(text.attrib["font-size"]), text.text or ""
        wide = text_width(words, size)
        shift = {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]]
        x, bottom = float(text.attrib["x"]) - shift * wide, float(text.attrib["y"])
        boxes.append((x, bottom - 0.75 * size, x + wide, bottom, words))
        assert x >= 0
        assert x + wide <= width
        assert bottom < float(root.attrib["height"])
        assert size >= 10
    for one, other in itertools.combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)
