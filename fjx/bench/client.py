"""One streamed request to an OpenAI-compatible server, timed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from fjx.bench.datasets import BenchRequest
from fjx.bench.metrics import RequestRecord
from fjx.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class BenchTarget:
    """Where and how requests are sent."""

    client: httpx.AsyncClient
    """Its base URL is the server's."""
    model: str
    endpoint: Literal["completions", "chat"]
    temperature: float = 0.0
    ignore_eos: bool = False
    seed: int | None = None

    def body(self, request: BenchRequest) -> dict[str, Any]:
        """The JSON body of a request; chat messages need the chat endpoint."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:  # an extension that not every server knows: sent only when asked for
            body["ignore_eos"] = True
        if self.seed is not None:
            body["seed"] = self.seed
        if self.endpoint == "completions":
            body["prompt"] = request.prompt
        elif isinstance(request.prompt, str):
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            body["messages"] = request.prompt
        return body


def open_client(base_url: str) -> httpx.AsyncClient:
    """A client without limits on time and connections; proxies are not used on loopback.

    Each request has a connection of its own: some servers close one that was idle for a moment, or
    served a few requests, just when the next request is sent on it.

    Raises:
        UserError: the address cannot be parsed.
    """
    key = os.environ.get("OPENAI_API_KEY")
    try:
        return httpx.AsyncClient(
            base_url=base_url.rstrip("/").removesuffix("/v1") + "/v1/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=urlsplit(base_url).hostname not in LOOPBACK,
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise UserError(f"base_url {base_url!r} is not an address: {error}") from error


async def first_model(client: httpx.AsyncClient) -> str:
    """Name of the first model that the server lists.

    Raises:
        UserError: the server does not answer, or lists none.
    """
    try:
        response = await client.get("models", timeout=30)
        response.raise_for_status()
        return str(response.json()["data"][0]["id"])
    except httpx.TransportError as error:
        raise UserError(
            f"no server answers at {client.base_url}: {error or type(error).__name__}; "
            "start one with 'fjx serve' or correct --base-url"
        ) from error
    except (httpx.HTTPStatusError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{client.base_url}models does not list a model ({error}); name it with --model"
        ) from error


async def send(target: BenchTarget, request: BenchRequest, record: RequestRecord) -> None:
    """Send one request and fill its record with times, token counts, or the error.

    Failures of the server or the connection end up in ``record.error``; none is raised.
    """
    path = "chat/completions" if target.endpoint == "chat" else "completions"
    sent = time.perf_counter()
    stream = _Stream(sent, record)
    try:
        async with target.client.stream("POST", path, json=target.body(request)) as response:
            if response.status_code != 200:
                body = (await response.aread()).decode(errors="replace")
                record.error = f"HTTP {response.status_code}: {_error_message(body)}"
                return
            async for line in response.aiter_lines():
                stream.add(line)
    except httpx.HTTPError as error:
        record.error = f"{type(error).__name__}: {error}"
        return
    stream.close()


class _Stream:
    """Reads the events of one response into a record."""

    def __init__(self, sent: float, record: RequestRecord) -> None:
        self.sent = sent
        self.record = record
        self.chunks = 0
        self.last_token = sent
        self.last_choice: float | None = None
        self.usage: Mapping[str, Any] = {}

    def add(self, line: str) -> None:
        """Take one line of the event stream; comments and other fields than data are skipped."""
        payload = line.removeprefix("data:").strip()
        if payload == line.strip() or payload in ("", "[DONE]"):
            return
        now = time.perf_counter()
        try:
            event = json.loads(payload)
        except ValueError:
            self.record.error = self.record.error or f"an event is not JSON: {payload[:200]}"
            return
        if "error" in event:
            self.record.error = self.record.error or _error_message(payload)
            return
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            self._add_choice(choice, now)

    def _add_choice(self, choice: Mapping[str, Any], now: float) -> None:
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or delta.get("reasoning_content")
        finish_reason = choice.get("finish_reason")
        self.record.finish_reason = finish_reason or self.record.finish_reason
        self.last_choice = now
        # A chunk that only names the role or the finish reason brings no token. Any other does,
        # even without text: a special token, or a part of a character.
        if not text and (finish_reason or "role" in delta):
            return
        self.chunks += 1
        if self.record.ttft is None:
            self.record.ttft = now - self.sent
        else:
            self.record.itl.append(now - self.last_token)
        self.last_token = now

    def close(self) -> None:
        """Complete the record at the end of the response."""
        record = self.record
        record.prompt_tokens = self.usage.get("prompt_tokens") or 0
        completion_tokens = self.usage.get("completion_tokens")
        record.output_tokens = self.chunks if completion_tokens is None else completion_tokens
        if record.error is None and (self.last_choice is None or record.finish_reason is None):
            record.error = "the stream ended without a finish reason"
        if record.error is None and self.last_choice is not None:
            record.e2el = self.last_choice - self.sent
            if record.ttft is None:  # the first token was an end token, which has no text
                record.ttft = record.e2el


def _error_message(body: str) -> str:
    """The message in an OpenAI-shaped error, or the body itself."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return body[:500]
