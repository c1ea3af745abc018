"""What all routes share, and what they need of an engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

from fjx import (
    EngineConfig,
    EngineStats,
    PlanStatus,
    RequestOutput,
    SamplingParams,
    SwitchRecord,
)
from fjx.serving.config import ServerConfig
from fjx.serving.errors import ApiError, unavailable
from fjx.serving.metrics import ServerMetrics
from fjx.serving.refusals import RefusalLog

PlanTarget = int | str | Mapping[str, Any]
"""A number of stages; the name of a mesh or the path of a mesh file; or a plan as JSON values."""


class TextStreamLike(Protocol):
    """Decodes tokens as they come."""

    def add(self, ids: Sequence[int]) -> str:
        """Return the text that is complete now."""

    def flush(self) -> str:
        """Return what was held back, at the end."""


class TokenizerLike(Protocol):
    """What the server needs of ``AsyncLLM.tokenizer``."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text."""

    @property
    def eos_token_ids(self) -> Sequence[int]:
        """The tokens that end a text, the usual one first."""

    @property
    def chat_template(self) -> str | None:
        """Source of the model's chat template; None: it has none."""

    @property
    def tool_template(self) -> str | None:
        """The same for conversations with tools."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""

    def token_bytes(self, token_id: int, /) -> bytes:
        """Return the bytes that a token stands for; they may be part of a character."""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Return the prompt of a conversation."""

    def stream(
        self, skip_special_tokens: bool = True, continuation: bool = False
    ) -> TextStreamLike:
        """Return a decoder for one text, or for what continues a prompt."""


class AsyncEngine(Protocol):
    """What the server needs of ``AsyncLLM``; it runs the engine in a thread of its own."""

    @property
    def config(self) -> EngineConfig:
        """How the model was loaded."""

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded and compiled."""

    @property
    def error(self) -> str | None:
        """Why the engine has died; None while it lives."""

    @property
    def tokenizer(self) -> TokenizerLike:
        """The model's tokenizer, once ready."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output, in tokens, once ready."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this, once ready."""

    async def start(self) -> None:
        """Load and compile; returns when ready."""

    @property
    def stalled_seconds(self) -> float:
        """How long the engine has been at its present step; 0 while it waits for work."""

    def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        request_id: str,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Stream what is new of a request; closing the stream aborts the request."""

    def stats(self) -> EngineStats:
        """Return a snapshot of the engine."""

    def plan_status(self) -> PlanStatus:
        """Return which plan serves, and what becomes of it, once ready."""

    async def regranularize(self, target: PlanTarget, *, wait: bool = True) -> SwitchRecord:
        """Change to another plan; without ``wait``, return once the change is accepted."""

    async def abort_regranularization(self) -> bool:
        """Abort a change of plan; return whether one was under way."""

    async def ended(self) -> None:
        """Return once the engine has stopped, or died; see ``error``."""

    async def shutdown(self, drain: float | None, patience: float | None = None) -> bool:
        """Stop the engine, giving running requests ``drain`` seconds and the step under way
        ``patience``; whether it has stopped."""


class RequestsInFlight:
    """Counts HTTP requests from the end of their body to the end of their answer."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @property
    def count(self) -> int:
        """How many there are now."""
        return self._count

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one request for as long as the context lasts."""
        self._count += 1
        self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                self._none.set()

    async def wait_for_none(self) -> None:
        """Return once no request is in flight."""
        await self._none.wait()


@dataclass
class ServerState:
    """The engine, its configuration, and whether new requests are let in."""

    llm: AsyncEngine
    config: ServerConfig
    metrics: ServerMetrics
    refusals: RefusalLog
    in_flight: RequestsInFlight = field(default_factory=RequestsInFlight)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first signal: running requests finish, new ones are refused."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        return self.stopping.is_set()

    @property
    def model_name(self) -> str:
        """The name of the model that answers carry."""
        return self.model_names[0]

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names under which clients may ask for the model."""
        return self.config.served_model_name or (self.llm.config.model,)

    def check_healthy(self) -> None:
        """Raise a 503 if the engine has died, or hangs."""
        if self.llm.error is not None:
            raise unavailable(self.llm.error, "engine_dead")
        limit, stalled = self.config.watchdog_timeout, self.llm.stalled_seconds
        if limit and stalled > limit:
            raise unavailable(
                f"the engine hangs: its present step began {stalled:.0f} s ago", "engine_hangs"
            )

    def check_serving(self) -> None:
        """Raise a 503 unless a new request can be served now."""
        self.check_healthy()
        if self.draining:
            raise unavailable("the server is shutting down", "shutting_down")
        if not self.llm.is_ready:
            raise unavailable("the model is still loading; try again shortly", "not_ready")

    def check_model(self, model: str | None) -> None:
        """Raise a 404 if a request names another model; naming none is fine."""
        if model is not None and model not in self.model_names:
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                f"the model {model!r} does not exist; this server serves "
                f"{', '.join(map(repr, self.model_names))}",
                param="model",
                code="model_not_found",
            )
