"""Errors: what a user can mend, in one line that says what was wrong, what was expected and what to
do; and how an engine ends. This file and `fjx.wording` import nothing of fjx."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or environment. The CLI prints the message in one line and exits with code 2."""


class MeshError(UserError, ValueError):
    """A mesh, plan, profile or cluster file that is wrong, or does not suit machine or model."""


class MemoryFitError(MeshError):
    """A model does not fit into the memory of the meshes that it was given."""


def error_at(label: str, line: int | None, message: str) -> MeshError:
    """An error whose message is led by the file and, where there is one, the line."""
    return MeshError(f"{label}, line {line}: {message}" if line else f"{label}: {message}")


class ModelError(UserError):
    """A model's files are missing, broken, or of an unsupported architecture."""


class RequestError(UserError):
    """A request that can never be served, such as a prompt longer than the context."""


class QueueFullError(Exception):
    """The waiting queue is at its limit; the client should retry after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineDeadError(Exception):
    """The engine's loop has ended with an unexpected error and serves no more requests."""


class RegranularizationError(Exception):
    """A change of plan could not begin or was aborted; the old plan serves on."""


class RegranularizationBusyError(RegranularizationError):
    """Another change of plan is under way."""


class StageLostError(Exception):
    """A stage of a cluster is gone or does not answer: what its steps would have brought is lost,
    and its requests are computed again."""
