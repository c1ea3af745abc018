"""Mixed requests to a server, some of them aborted, and whether their answers are right."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

_TIMEOUT = httpx.Timeout(600.0)
_ABORTED = 0.25
"""Share of the requests that are given up after a few tokens."""
_WORDS = (
    *("the", "river", "counts", "seven", "green", "stones", "while", "a", "teacher", "writes"),
    *("about", "light", "and", "iron", "in", "old", "books", "of", "winter", "trade"),
)


@dataclass(frozen=True)
class Asked:
    """A request, and the text that plain decoding gives it."""

    body: dict[str, Any]
    text: str = ""


@dataclass
class Outcomes:
    """What came of the requests so far."""

    right: int = 0
    aborted: int = 0
    """Given up by the client; what had come was right."""
    wrong: list[str] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "right": self.right,
            "aborted": self.aborted,
            "wrong": len(self.wrong),
            "wrong_examples": self.wrong[:3],
            "failed": dict(self.failed),
        }


def mixed_requests(count: int, longest: int, seed: int) -> list[Asked]:
    """Requests of all kinds: greedy and drawn, short and long prompts; an eighth have prompts of
    ``longest`` words."""
    draw, asked = random.Random(seed), []
    for number in range(count):
        words = longest if number % 8 == 7 else draw.randrange(2, 60)
        body = {
            "prompt": f"{number}. " + " ".join(draw.choice(_WORDS) for _ in range(words)),
            "max_tokens": draw.choice((8, 24, 64, 128)),
            "temperature": draw.choice((0.0, 0.0, 0.7, 1.0)),
            "seed": number,
        }
        asked.append(Asked(body))
    return asked


async def answers(url: str, requests: Sequence[Asked]) -> list[Asked]:
    """The requests with the texts that this server gives them."""
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, trust_env=False) as client:
        room = asyncio.Semaphore(8)

        async def ask(asked: Asked) -> Asked:
            async with room:
                answer = await client.post("/v1/completions", json=asked.body)
                answer.raise_for_status()
                return Asked(asked.body, answer.json()["choices"][0]["text"])

        return list(await asyncio.gather(*map(ask, requests)))


class Load:
    """Keeps so many requests in flight until it is told to end."""

    def __init__(self, url: str, requests: Sequence[Asked], in_flight: int, seed: int) -> None:
        self.outcomes = Outcomes()
        self._url, self._requests, self._in_flight = url, requests, in_flight
        self._draw = random.Random(seed)
        self._ends = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        """Load while the body runs; what is in flight then is finished."""
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=_TIMEOUT, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self._in_flight):
                group.create_task(self._ask_on(client))
            try:
                yield
            finally:
                self._ends.set()

    async def _ask_on(self, client: httpx.AsyncClient) -> None:
        while not self._ends.is_set():
            asked = self._draw.choice(self._requests)
            try:
                await self._ask(client, asked)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                self.outcomes.failed[f"{type(error).__name__}: {error}"[:200]] += 1
                await asyncio.sleep(1)

    async def _ask(self, client: httpx.AsyncClient, asked: Asked) -> None:
        text, most = "", None
        if self._draw.random() < _ABORTED:
            most = self._draw.randrange(0, 12)
        body, chunks = asked.body | {"stream": True}, 0
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                text += chunk["choices"][0]["text"]
                chunks += 1
                if most is not None and chunks > most:
                    break
            else:
                most = None
        right = asked.text == text if most is None else asked.text.startswith(text)
        if not right:
            self.outcomes.wrong.append(f"{asked.body}: {text!r}, not {asked.text!r}")
        elif most is None:
            self.outcomes.right += 1
        else:
            self.outcomes.aborted += 1
