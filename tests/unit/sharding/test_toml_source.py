"""Errors about TOML files name the line on which a person finds the key."""

from __future__ import annotations

import pytest

from fjx.errors import MeshError
from fjx.sharding.toml_source import Path, TomlSource

ODD = """\
# a comment with = and [[stage]]
title = \"\"\"
[[stage]]
devices = 1
\"\"\"

platform   =   "cpu"   # after a value
'quoted key' = 1
link.bandwidth = 1.0
link.latency = 2.0

[[stage]]   # first
devices = [
  0,  # ]

  1,
]
[stage.link]
bandwidth = 3.0

  [["stage"]]
  devices = 2
  link = { bandwidth = 4.0, latency = 5.0 }
"""
TABLES_IN_ARRAY = """\
stage = [
  { tensor = 2 },
  # not a stage
  {
    tensor = 4 },
]
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("platform",), 7),
        (("quoted key",), 8),
        (("link",), 9),
        (("link", "latency"), 10),
        (("stage", 0), 12),
        (("stage", 0, "devices"), 13),
        (("stage", 0, "devices", 1), 16),
        (("stage", 0, "link"), 18),
        (("stage", 0, "link", "bandwidth"), 19),
        (("stage", 1), 21),
        (("stage", 1, "devices"), 22),
        (("stage", 1, "link", "latency"), 23),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_key_is_found_however_the_file_is_written(path: Path, line: int, newline: str) -> None:
    assert TomlSource("file", ODD.replace("\n", newline)).line_of(path) == line


def test_the_items_of_an_array_over_several_lines_have_their_own() -> None:
    content = TABLES_IN_ARRAY.replace("{\n    tensor", "{ tensor")
    source = TomlSource("file", content)
    assert [source.line_of(("stage", i)) for i in range(2)] == [2, 4]


def test_a_missing_key_has_the_line_of_its_table() -> None:
    assert TomlSource("file", ODD).line_of(("stage", 1, "tensor")) == 21
    assert TomlSource("file", ODD).line_of(("nothing",)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb 2\n", r"^mesh file x.toml, line 2: not TOML: Expected '=' .* \(column \d\)$"),
        ("a = 1\na = 2\n", "line 2: not TOML: Cannot overwrite a value"),
        ("a = [1,", "last line: not TOML: "),
    ],
)
def test_a_syntax_error_names_the_line(text: str, message: str) -> None:
    with pytest.raises(MeshError, match=message):
        TomlSource("mesh file x.toml", text)
