"""The server's configuration; the command line is generated from it."""

from __future__ import annotations

from dataclasses import dataclass

from fjx import UserError


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where the server listens and what it lets in.

    Raises:
        UserError: a value is outside its range; the message names it.
    """

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 accepts requests from other machines."""
    port: int = 8000
    """TCP port; 0 picks a free one, which the log names."""
    api_key: str | None = None
    """Requests must carry it as "Authorization: Bearer KEY"; by default none is asked for."""
    admin_key: str | None = None
    """Changes of the plan must carry it, as they would the API key, which it replaces everywhere;
    by default they need what other requests need."""
    served_model_name: str | None = None
    """Name under which clients ask for the model; by default the model as it was given."""
    shutdown_timeout: float = 30.0
    """Seconds for running requests to finish after SIGTERM or Ctrl-C; a second one kills."""
    watchdog_timeout: float = 120.0
    """Seconds after which a step that has not ended counts as hung: /health says so, and no request
    is let in. After twice as long the process ends with exit code 70; 0: never."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Largest request body, in bytes; a larger one is refused with status 413."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages whose scripts may call the server ("*": any); by default none."""
    log_requests: bool = True
    """Log one line for each finished request."""

    def __post_init__(self) -> None:
        def check(ok: bool, message: str) -> None:
            if not ok:
                raise UserError(message)

        check(0 <= self.port <= 65535, f"port must be in [0, 65535], got {self.port}")
        for key in ("api_key", "admin_key"):
            check(
                getattr(self, key) != "", f"{key} must not be empty; leave it out to ask for none"
            )
        check(
            self.shutdown_timeout >= 0,
            f"shutdown_timeout must be at least 0 seconds, got {self.shutdown_timeout}",
        )
        check(
            self.watchdog_timeout >= 0,
            f"watchdog_timeout must be at least 0 seconds, got {self.watchdog_timeout}",
        )
        check(
            self.max_body_bytes >= 1,
            f"max_body_bytes must be at least 1, got {self.max_body_bytes}",
        )
