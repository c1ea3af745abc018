"""The server's configuration; the command line is generated from it."""

from __future__ import annotations

from dataclasses import dataclass

from fjx import UserError

_TEXT_BYTES = 1024 * 1024
_TEXT_BYTES_PER_TOKEN = 32
"""Several times what a token of any text that means something stands for."""


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
    """Requests must carry it as "Authorization: Bearer KEY" or "X-Api-Key: KEY"; by default none is
    asked for."""
    admin_key: str | None = None
    """Changes of the plan must carry it, as they would the API key, which it replaces everywhere;
    by default they need what other requests need."""
    served_model_name: tuple[str, ...] = ()
    """Names under which clients may ask for the model, the first of which answers carry; by default
    the model as it was given."""
    shutdown_timeout: float = 30.0
    """Seconds for running requests to finish after SIGTERM or Ctrl-C; a second one kills."""
    watchdog_timeout: float = 120.0
    """Seconds after which a step that has not ended counts as hung: /health says so, and no request
    is let in. After twice as long the process ends with exit code 70; 0: never."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Largest request body, in bytes; a larger one is refused with status 413."""
    max_body_values: int = 400_000
    """Most values in a body's JSON, where a string counts four, a list, an object and a name in one
    twenty; more are refused with status 413."""
    max_text_bytes: int | None = None
    """Longest text to turn into token ids, in bytes of UTF-8: a prompt, a conversation or what
    /tokenize is given; by default 32 for each token of the context, but at least 1 MiB."""
    max_connections: int = 4096
    """Most open connections; one more takes the place of the longest idle one, or gets a 503."""
    header_timeout: float = 20.0
    """Seconds for the headers of a request to arrive."""
    body_timeout: float = 60.0
    """Seconds for the body of a request to arrive."""
    send_timeout: float = 30.0
    """Seconds after which a client that takes nothing of its answer is cut off, and its request
    aborted."""
    keep_alive_timeout: float = 75.0
    """Seconds for which a connection may be idle between two requests."""
    forwarded_allow_ips: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed ("*": any); by
    default none is."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages whose scripts may call the server ("*": any); by default none."""
    log_requests: bool = True
    """Log one line for each finished request, and for each refused one."""

    def __post_init__(self) -> None:
        def check(ok: bool, message: str) -> None:
            if not ok:
                raise UserError(message)

        names: object = self.served_model_name
        if isinstance(names, str):  # in Python, a single one may be given as it is
            object.__setattr__(self, "served_model_name", (names,))
        check(
            all(self.served_model_name),
            "served_model_name must not be empty; leave it out to use the model's own name",
        )
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
        for name in ("max_body_bytes", "max_body_values", "max_text_bytes", "max_connections"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("header_timeout", "body_timeout", "send_timeout", "keep_alive_timeout"):
            value = getattr(self, name)
            check(value > 0, f"{name} must be more than 0 seconds, got {value}")

    def longest_text(self, max_model_len: int) -> int:
        """Longest text to encode for a model with this context, in bytes."""
        if self.max_text_bytes is not None:
            return self.max_text_bytes
        return max(_TEXT_BYTES, _TEXT_BYTES_PER_TOKEN * max_model_len)
