"""Errors that a user can mend: each message says what was wrong, what was expected, what to do."""

from fjx.sharding.errors import MeshError, UserError

__all__ = [
    "EngineDeadError",
    "MeshError",
    "ModelError",
    "QueueFullError",
    "RegranularizationBusyError",
    "RegranularizationError",
    "RequestError",
    "StageLostError",
    "UserError",
]


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
