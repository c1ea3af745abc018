"""What a hostile or careless client may do to a server; see attacks.py.

Each attack is a coroutine that takes a `Target`, ends within about its seconds, and says which
statuses it got.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from attack_templates import BOMBS

HEADERS = "HTTP/1.1\r\nHost: fjx\r\nContent-Type: application/json\r\nConnection: close\r\n"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LARGE = 16_000_000
WEIGHT = 395_000
"""Just below --max-body-values."""
TEXT = 1_048_000
"""Just below --max-text-bytes for a short context."""

Outcome = Counter[str]


@dataclass(frozen=True)
class Target:
    """A server, and how long to attack it."""

    host: str
    port: int
    seconds: float

    def connection(self) -> contextlib.AbstractAsyncContextManager[Streams]:
        """A connection, which is closed afterwards."""
        return connected(self)

    @property
    def rounds(self) -> Iterator[int]:
        """Counts until the seconds are over."""
        end, count = time.monotonic() + self.seconds, 0
        while time.monotonic() < end:
            yield count
            count += 1


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Attack = Callable[[Target], Awaitable[Outcome]]


@contextlib.asynccontextmanager
async def connected(target: Target):
    plain = socket.socket()
    plain.setblocking(False)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    await asyncio.get_running_loop().sock_connect(plain, (target.host, target.port))
    reader, writer = await asyncio.open_connection(sock=plain)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def request(path: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST {path} {HEADERS}Content-Length: {size}\r\n\r\n".encode() + body


async def ask(target: Target, path: str, body: bytes, outcome: Outcome) -> dict[str, str]:
    """Send a request, and read its answer to the end; the answer's headers."""
    try:
        async with asyncio.timeout(target.seconds + 30), target.connection() as (reader, writer):
            writer.write(request(path, body))
            answer = await reader.read()
    except TimeoutError:
        outcome["no answer in time"] += 1
        return {}
    except OSError as error:
        outcome[type(error).__name__] += 1
        return {}
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    outcome[lines[0].split(" ")[1] if " " in lines[0] else "closed"] += 1
    return dict(line.lower().split(": ", 1) for line in lines[1:])


async def repeatedly(target: Target, path: str, body: bytes, at_once: int = 3) -> Outcome:
    outcome: Outcome = Counter()

    async def one() -> None:
        for _ in target.rounds:
            await ask(target, path, body, outcome)

    await asyncio.gather(*(one() for _ in range(at_once)))
    return outcome


def asks(path: str, body: bytes | Callable[[], bytes], at_once: int = 3) -> Attack:
    """The same request again and again, from several clients."""

    async def attack(target: Target) -> Outcome:
        made = body if isinstance(body, bytes) else body()
        return await repeatedly(target, path, made, at_once)

    return attack


def many(head: str, item: str, count: int, tail: str) -> Callable[[], bytes]:
    return lambda: (head + ",".join([item] * count) + tail).encode()


def as_prompt(text: str, length: int) -> Callable[[], bytes]:
    return lambda: json.dumps({"prompt": (text * length)[:length]}).encode()


async def until_closed(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    try:
        answer = await reader.read(1000)
        outcome[answer.split(b" ")[1].decode() if b" " in answer else "closed"] += 1
    except OSError:
        outcome["closed"] += 1


def held(count: int, first: bytes, then: bytes | None = None) -> Attack:
    """Many connections that begin a request and do not end it; ``then`` is sent twice a second."""

    async def attack(target: Target) -> Outcome:
        outcome: Outcome = Counter()

        async def one() -> None:
            try:
                async with target.connection() as (reader, writer):
                    writer.write(first)
                    reading = asyncio.create_task(until_closed(reader, outcome))
                    for _ in target.rounds:
                        if reading.done():
                            return
                        if then is not None and not writer.transport.is_closing():
                            writer.write(then)
                        await asyncio.sleep(0.5)
                    reading.cancel()
                    outcome["still open at the end"] += 1
            except OSError as error:
                outcome[type(error).__name__] += 1

        await asyncio.gather(*(one() for _ in range(count)))
        return outcome

    return attack


async def slow_readers(target: Target) -> Outcome:
    """Streams that nobody reads."""
    outcome: Outcome = Counter()
    fields = {"prompt": "Once", "max_tokens": 4000, "n": 8, "stream": True, "ignore_eos": True}
    body = json.dumps(fields | {"logprobs": 20}).encode()

    async def one() -> None:
        with contextlib.suppress(OSError):
            async with target.connection() as (_, writer):
                writer.transport.pause_reading()
                writer.write(request(COMPLETIONS, body))
                await asyncio.sleep(target.seconds)
                outcome["held"] += 1

    await asyncio.gather(*(one() for _ in range(4)))
    return outcome


async def queue_flood(target: Target) -> Outcome:
    """500 clients at once on a short queue; what Retry-After says is among the outcomes."""
    outcome: Outcome = Counter()
    body = json.dumps({"prompt": "Once", "max_tokens": 64, "ignore_eos": True}).encode()

    async def one() -> None:
        headers = await ask(target, COMPLETIONS, body, outcome)
        if "retry-after" in headers:
            outcome[f"retry after {headers['retry-after']} s"] += 1

    await asyncio.gather(*(one() for _ in range(500)))
    return outcome


async def pipelined(target: Target) -> Outcome:
    """Thousands of requests in one connection."""
    outcome: Outcome = Counter()
    for _ in target.rounds:
        with contextlib.suppress(OSError):
            async with target.connection() as (reader, writer):
                writer.write(b"GET /v1/models HTTP/1.1\r\nHost: fjx\r\n\r\n" * 1000)
                answer = await reader.read()
                for status in (b"200", b"429"):
                    outcome[status.decode()] += answer.count(b"HTTP/1.1 " + status)
    return outcome


async def junk(target: Target) -> Outcome:
    """Random bytes."""
    outcome: Outcome = Counter()
    source = random.Random(0)
    for _ in target.rounds:
        with contextlib.suppress(OSError):
            async with target.connection() as (reader, writer):
                writer.write(source.randbytes(2000) + b"\r\n\r\n")
                async with asyncio.timeout(60):
                    await until_closed(reader, outcome)
    return outcome


ATTACKS: dict[str, Attack] = {
    "prompt of 16 MB": asks(COMPLETIONS, as_prompt("a", LARGE)),
    "16 MB of spaces to tokenize": asks("/tokenize", as_prompt(" ", LARGE)),
    "message of 16 MB": asks(
        CHAT, lambda: json.dumps({"messages": [{"role": "user", "content": "a" * LARGE}]}).encode()
    ),
    "longest word to tokenize": asks("/tokenize", as_prompt("a", TEXT), at_once=8),
    "longest run of accents to tokenize": asks("/tokenize", as_prompt("é", TEXT // 2), at_once=8),
    "longest text to tokenize, with strings": asks(
        "/tokenize",
        lambda: json.dumps({"prompt": "ab \n" * (TEXT // 4), "return_token_strs": True}).encode(),
    ),
    "16 MB of numbers": asks(COMPLETIONS, many('{"prompt":[', "1", LARGE // 2, "]}")),
    "16 MB of lists": asks(COMPLETIONS, many('{"prompt":[', "[1]", LARGE // 4, "]}")),
    "16 MB of messages": asks(CHAT, many('{"messages":[', "{}", LARGE // 3, "]}")),
    "16 MB of brackets": asks(COMPLETIONS, lambda: b'{"prompt":' + b"[" * LARGE),
    "16 MB of escapes": asks(COMPLETIONS, lambda: b'{"prompt":"' + b"\\u00e9" * (LARGE // 6)),
    "most numbers": asks(COMPLETIONS, many('{"prompt":[', "1", WEIGHT - 30, "]}")),
    "slowest numbers": asks(
        COMPLETIONS, many('{"prompt":[', "1.2345678901234567e-200", WEIGHT - 30, "]}")
    ),
    "most lists": asks(COMPLETIONS, many('{"prompt":[', "[1]", WEIGHT // 21 - 10, "]}")),
    "most messages": asks(CHAT, many('{"messages":[', "{}", WEIGHT // 21 - 10, "]}")),
    "longest conversation": asks(
        CHAT, many('{"messages":[', '{"role":"user","content":""}', WEIGHT // 70 - 10, "]}")
    ),
    "most biases": asks(
        COMPLETIONS,
        lambda: json.dumps(
            {"prompt": "a", "logit_bias": {str(i): "x" for i in range(WEIGHT // 25 - 10)}}
        ).encode(),
    ),
    "most unknown fields": asks(
        COMPLETIONS,
        lambda: json.dumps(
            {"prompt": "a", **{f"f{i}": 0 for i in range(WEIGHT // 21 - 10)}}
        ).encode(),
    ),
    "longest unknown field": asks(
        COMPLETIONS, lambda: json.dumps({"prompt": "a", "x" * LARGE: 1}).encode()
    ),
    "most stop strings": asks(
        COMPLETIONS, many('{"prompt":"a","max_tokens":8,"stop":[', '"zzzz"', WEIGHT // 5 - 20, "]}")
    ),
    "most stop ids": asks(
        COMPLETIONS, many('{"prompt":"a","max_tokens":8,"stop_token_ids":[', "7", WEIGHT - 60, "]}")
    ),
    "most ids to detokenize": asks("/detokenize", many('{"tokens":[', "300", WEIGHT - 30, "]}")),
    "2,000 prompts": asks(COMPLETIONS, many('{"prompt":[', '"b"', 2000, '],"max_tokens":1}')),
    "log-probabilities of many completions": asks(
        COMPLETIONS,
        b'{"prompt":"Once","n":16,"max_tokens":64,"logprobs":20,"ignore_eos":true}',
        at_once=2,
    ),
    "log-probabilities of 24,000 tokens": asks(
        COMPLETIONS,
        lambda: json.dumps(
            {"prompt": [504] * 1500, "echo": True, "logprobs": 20, "n": 16, "max_tokens": 0}
        ).encode(),
        at_once=1,
    ),
    "log-probabilities of a long prompt": asks(
        COMPLETIONS,
        lambda: json.dumps(
            {"prompt": [504] * 1500, "echo": True, "logprobs": 20, "max_tokens": 1}
        ).encode(),
    ),
    "echo in 30 completions": asks(
        COMPLETIONS,
        lambda: json.dumps(
            {"prompt": [504] * 400, "echo": True, "n": 30, "max_tokens": 1}
        ).encode(),
    ),
    **{
        f"template bomb: {name}": asks(
            CHAT,
            json.dumps(
                {
                    "messages": [{"role": "user", "content": "Hi"}],
                    "chat_template_kwargs": {"bomb": name},
                }
            ).encode(),
        )
        for name in BOMBS
    },
    "plan of a million stages": asks("/v1/plan", b'{"stages":1000000}'),
    "1,500 half-open connections": held(1500, b"GET /health HTTP/1.1\r\nHost: fjx\r\n"),
    "1,500 silent connections": held(1500, b""),
    "300 dripping headers": held(300, b"GET /health HTTP/1.1\r\nHost: fjx\r\n", b"X-Slow: 1\r\n"),
    "300 dripping bodies": held(300, request(COMPLETIONS, b'{"prompt":"', 100_000), b"a"),
    "endless headers": held(20, b"GET /health HTTP/1.1\r\nX: ", b"a" * 100_000),
    "clients that do not read": slow_readers,
    "500 clients on a queue of 30": queue_flood,
    "pipelining": pipelined,
    "junk": junk,
}
