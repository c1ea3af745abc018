import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest

from fjx.bench.config import LatencyConfig, LoadConfig, ReportConfig, ThroughputConfig
from fjx.cli.fields import field_specs
from fjx.cli.options import CommandParser, Section, read_config, resolve
from fjx.cli.sections import FILE_SECTIONS
from fjx.errors import UserError


@dataclass(frozen=True)
class Base:
    inherited: int = 1
    """Comes from the base."""


@dataclass(frozen=True)
class Sample(Base):
    count: int = 3
    """How many, with ``marks`` and
    a second line."""
    ratio: float = 0.5
    """A ratio of 50%."""
    limit: int | None = 16
    """Most of them."""
    name: str | None = None
    """A name."""
    kind: Literal["a", "b"] = "a"
    """Which kind."""
    folder: Path | None = None
    """A folder."""
    fast: bool = True
    """Go fast."""
    words: tuple[str, ...] = ()
    """Some words."""
    bias: dict[int, float] = field(default_factory=dict)
    """Some biases."""


@dataclass(frozen=True)
class Other:
    count: int = 9
    """A field with a name that is taken."""
    size: int = 1
    """Another one, under the same heading."""


SAMPLE = Section("sample", Sample, {"numbers": ("count", "ratio", "limit")})
OTHER = Section("other", Other, {"other": ("count",)})


def parser() -> CommandParser:
    made = CommandParser(prog="test")
    made.add_section(SAMPLE)
    made.add_section(OTHER)
    made.add_general_options(config_file=True)
    return made


def parse(*words: str) -> tuple[Sample, Other]:
    arguments = parser().parse_args(words)
    file = read_config(arguments, (SAMPLE, OTHER))
    return resolve(arguments, SAMPLE, file), resolve(arguments, OTHER, file)


def with_file(tmp_path: Path, text: str, *words: str) -> tuple[Sample, Other]:
    path = tmp_path / "fjx.toml"
    path.write_text(text)
    return parse("--config", str(path), *words)


def test_without_options_the_defaults_hold() -> None:
    assert parse() == (Sample(), Other())


def test_every_type_has_a_form_on_the_command_line() -> None:
    sample, _ = parse(
        *("--count", "-4", "--ratio", "inf", "--name", "none", "--kind", "b", "--folder", "x/y"),
        *("--no-fast", "--words", "a", "b", "--words", "c", "--bias", "3=-1.5", "4=2"),
        *("--inherited", "2", "--limit", "7"),
    )
    assert sample == Sample(
        inherited=2,
        count=-4,
        ratio=float("inf"),
        limit=7,
        name="none",
        kind="b",
        folder=Path("x/y"),
        fast=False,
        words=("a", "b", "c"),
        bias={3: -1.5, 4: 2.0},
    )


def test_none_is_a_word_where_it_is_not_the_default() -> None:
    assert parse("--limit", "none")[0].limit is None
    with pytest.raises(UserError, match="--count: expected a whole number, got 'none'"):
        parse("--count", "none")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--count", "1.5"], "--count: expected a whole number, got '1.5'"),
        (["--ratio", "half"], "--ratio: expected a number, got 'half'"),
        (["--kind", "c"], "--kind: expected one of a, b; got 'c'"),
        (["--bias", "3"], "--bias: expected KEY=VALUE, got '3'"),
        (["--bias", "x=1"], "--bias: expected a whole number, got 'x'"),
        (["--coun", "1"], "--coun"),
    ],
)
def test_a_bad_value_is_named(words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse(*words)


def test_a_taken_flag_gets_the_name_of_its_section() -> None:
    sample, other = parse("--count", "5", "--other-count", "6", "--size", "7")
    assert (sample.count, other) == (5, Other(count=6, size=7))


def test_help_holds_docs_defaults_and_headings() -> None:
    text = " ".join(parser().format_help().split())
    assert "--count N How many, with marks and a second line. [3]" in text
    assert "--ratio X A ratio of 50%. [0.5]" in text
    assert "--limit N Most of them. [16; or none]" in text
    assert "--name TEXT A name. --kind" in text
    assert "--kind {a,b} Which kind. [a]" in text
    assert "--[no-]fast Go fast. [on]" in text
    assert "--inherited N Comes from the base. [1]" in text
    assert text.index("numbers:") < text.index("--count N How") < text.index("sample:")


def test_the_file_is_over_the_defaults_and_under_the_command_line(tmp_path: Path) -> None:
    text = """
        [sample]
        count = 5
        ratio = 1
        limit = "none"
        folder = "x"
        fast = false
        words = ["a"]
        bias = { 3 = 1 }
        [other]
        count = 8
    """
    sample, other = with_file(tmp_path, text, "--count", "6", "--words", "b")
    expected = Sample(
        count=6, ratio=1.0, limit=None, folder=Path("x"), fast=False, words=("b",), bias={3: 1.0}
    )
    assert sample == expected
    assert other == Other(8)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[sample]\ncuont = 1", r"line 2: unknown key 'cuont' in \[sample\]; .* is 'count'"),
        (
            "\n[sampel]\ncount = 1",
            r"line 2: unknown table \[sampel\]; expected one of \[sample\], \[other\]",
        ),
        ("ratio = 1", r"line 1: key 'ratio' stands outside a table; put it under \[sample\]"),
        (
            "[sample]\n# so many\ncount = '1'",
            r"line 3: \[sample\] count: expected a whole number, got '1'",
        ),
        ("[sample]\ncount = true", "expected a whole number, got True"),
        ("[sample]\nfast = 1", "expected true or false, got 1"),
        ("[sample]\nwords = 1", "expected a list, got 1"),
        ("[sample]\nwords = [1]", "expected text, got 1"),
        ("[sample]\nbias = 1", "expected a table, got 1"),
        ("[sample]\nkind = 'c'", "expected one of a, b; got 'c'"),
        ("[sample]\ncount = x", r"fjx\.toml, line 2: not TOML: Invalid value"),
        ("[sample", "last line: not TOML"),
    ],
)
def test_an_error_in_the_file_is_named_with_its_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        with_file(tmp_path, text)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent\.toml"):
        parse("--config", str(tmp_path / "absent.toml"))


CONFIGS = [section.config for section in FILE_SECTIONS]


@pytest.mark.parametrize(
    "config", [*CONFIGS, LoadConfig, ThroughputConfig, LatencyConfig, ReportConfig]
)
def test_every_field_of_the_real_configs_is_a_documented_option(config: type) -> None:
    specs = field_specs(config)
    assert [spec.name for spec in specs] == [f.name for f in fields(config)]
    assert all(spec.help for spec in specs)
    made = CommandParser(prog="test")
    made.add_section(Section("x", config))
    assert resolve(made.parse_args([]), Section("x", config)) == config()


@pytest.mark.parametrize("section", FILE_SECTIONS, ids=lambda section: section.name)
def test_headings_name_fields_that_exist(section: Section) -> None:
    known = {f.name for f in fields(section.config)}
    assert {name for names in section.groups.values() for name in names} <= known


def test_a_namespace_without_options_of_a_section_gives_its_defaults() -> None:
    assert resolve(argparse.Namespace(), OTHER) == Other()
