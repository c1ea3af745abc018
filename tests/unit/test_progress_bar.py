"""What a person sees of long work: a bar on a terminal, whole lines in a log."""

from __future__ import annotations

import io
import sys

import pytest

from fjx import progress_bar as module
from fjx.progress_bar import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Journal(io.StringIO):
    """Not a terminal."""


def follow(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch, seconds: float) -> str:
    """What two pieces of work side by side write, with this time between lines."""
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", seconds)
    monkeypatch.setattr(sys, "stderr", screen)
    with (
        progress_bar(total=4, desc="Loading", unit="B", unit_scale=True) as loading,
        progress_bar(total=2, desc="Compiling", unit="program") as compiling,
    ):
        for _ in range(2):
            loading.update(2)
            loading.set_postfix(left=1)
            compiling.update()
            compiling.refresh()
    return screen.getvalue()


def test_a_log_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = follow(Journal(), monkeypatch, seconds=0.0)
    assert "\r" not in text
    assert "\x1b" not in text
    assert text.endswith("\n")
    lines = text.splitlines()
    assert all(line.startswith(("Loading: ", "Compiling: ")) for line in lines)
    assert "Compiling: 50% (1/2 programs) after 00:00" in text
    assert "Loading: 100% (4 B of 4 B) after 00:00" in text


def test_the_end_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Journal()
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar(total=1, desc="Compiling", unit="program") as compiling:
        compiling.update()
    assert screen.getvalue().count("Compiling: 100%") == 1


def test_a_log_hears_nothing_of_short_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert follow(Journal(), monkeypatch, seconds=60.0) == ""


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    text = follow(Terminal(), monkeypatch, seconds=60.0)
    assert "\r" in text
    assert "Compiling: 100%" in text


def test_it_goes_through_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(3), desc="Batches", unit="batch")) == [0, 1, 2]
    assert list(progress_bar(range(3), disable=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
