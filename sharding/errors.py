"""Errors of plans, meshes and profiles that a user can mend."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """Bad input or environment. The CLI prints the message in one line and exits with code 2.

    It is defined here because this is the lowest part of fjx; `fjx.errors` has it, too.
    """


class MeshError(UserError, ValueError):
    """A mesh, plan, profile or cluster file that is wrong, or does not suit machine or model.

    The message says what was wrong, what was expected and what to do, in one line.
    """


class MemoryFitError(MeshError):
    """A model does not fit into the memory of the meshes that it was given."""


def error_at(label: str, line: int | None, message: str) -> MeshError:
    """An error whose message is led by the file and, where there is one, the line."""
    return MeshError(f"{label}, line {line}: {message}" if line else f"{label}: {message}")


def listed(names: Iterable[object], *, last: str = "and") -> str:
    """Join names for a message: ``a, b and c``."""
    words = [str(name) for name in names]
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "none"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: ``1 device``, ``2 devices``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def shortened(text: str, most: int = 60) -> str:
    """A user's own words as a message repeats them: whole, or their beginning."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
