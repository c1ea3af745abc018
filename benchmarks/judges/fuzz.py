"""Sends extreme requests to ``fjx serve``: none may hang it, kill it, or change others' tokens.

    python benchmarks/judges/fuzz.py --output FILE.json

Every value of ``fuzz_space.py`` alone, every pair of extreme numbers, and mixtures, with and
without streaming, some of whose clients leave. After every 500 requests two plain completions, one
greedy and one sampled, must have the tokens that they had before the first. A status of 500, an
error within a stream, an answer that takes longer than --patience, or the server's end fails the
fuzz. The server is started here, on a tiny random model, and listens on this machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fuzz_space import COMPLETIONS, Shot, shots
from server import Server, command_line, end_servers_on_sigterm, status
from tiny_model import write_tiny_model

from fjx.bench.report import environment

OPTIONS = (
    "--max-num-seqs", "8", "--max-num-batched-tokens", "64", "--max-waiting-requests", "256",
    "--kv-cache-memory", "0.05", "--no-log-requests", "--dtype", "float32",
)  # fmt: skip
CONCURRENCY = 12
CHECK_EVERY = 500
LEAVE_SECONDS = 0.02
SHOWN = 40
PLAIN = (
    {"prompt": "The sky", "max_tokens": 24, "temperature": 0, "logprobs": 0, "ignore_eos": True},
    {"prompt": "The sea", "max_tokens": 24, "seed": 7, "logprobs": 0, "ignore_eos": True},
)


@dataclass
class Record:
    """What happened."""

    statuses: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    """Seconds of the answer that took longest, from sending to its last byte."""
    slowest: str = ""
    hangs: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Requests that failed in another way, and what was said."""
    checks: int = 0


def main() -> int:
    """Fuzz, print the counts, and return 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, help="only a sample of so many")
    parser.add_argument("--patience", type=float, default=120, help="seconds for an answer [120]")
    parser.add_argument("--output", type=Path, help="write the result to this file, as JSON")
    arguments = parser.parse_args()
    end_servers_on_sigterm()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder))
        options = ["--model", str(model), "--load-random-weights", "--served-model-name", "tiny"]
        server = Server(sys.executable, [*options, *OPTIONS])
        record = Record()
        try:
            asyncio.run(fuzz(server, arguments.requests, arguments.patience, record))
        finally:
            alive = server.running
            health = status(f"{server.url}/health") if alive else None
            exit_code = server.stop()
    failed = not alive or health != 200 or record.hangs or record.faults
    result = {
        **environment([]),
        "command": command_line(),
        "server": shlex.join(["fjx", "serve", *OPTIONS]),
        "requests": record.statuses.total(),
        "statuses": dict(sorted(record.statuses.items())),
        "hangs": len(record.hangs),
        "deaths": 0 if alive else 1,
        "health_afterwards": health,
        "exit_code": exit_code,
        "checks_of_plain_completions": record.checks,
        "longest_answer_seconds": record.longest,
        "longest_answer_to": record.slowest,
        "seconds": time.monotonic() - begin,
        "faults": record.faults[:SHOWN],
        "hanging": record.hangs[:SHOWN],
    }
    print(json.dumps(result, indent=1))
    if not alive:
        print(server.log())
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failed else 0


async def fuzz(server: Server, count: int | None, patience: float, record: Record) -> None:
    """Send everything, ``CONCURRENCY`` at a time, with pauses in which plain requests are checked.

    Ends early when the server does, or when it hangs.
    """
    limits = httpx.Limits(max_connections=CONCURRENCY + 4)
    async with httpx.AsyncClient(
        base_url=server.url, timeout=patience, limits=limits, trust_env=False
    ) as client:
        known = [await plain(client, body) for body in PLAIN]
        waiting = iter(shots(count))
        while stretch := _take(waiting, CHECK_EVERY):
            todo = iter(stretch)
            await asyncio.gather(*(worker(client, todo, record) for _ in range(CONCURRENCY)))
            if not server.running or record.hangs:
                return
            for body, tokens in zip(PLAIN, known, strict=True):
                if (now := await plain(client, body)) != tokens:
                    record.faults.append(f"a plain completion changed: {body}: {tokens} -> {now}")
            record.checks += 1
            if sys.stderr.isatty() or record.checks % 10 == 0:
                print(
                    f"{record.statuses.total()} requests: {dict(record.statuses)}", file=sys.stderr
                )


async def worker(client: httpx.AsyncClient, todo: Iterator[Shot], record: Record) -> None:
    """Send requests until there are no more."""
    for shot in todo:
        begin = time.monotonic()
        try:
            outcome = await send(client, shot, record)
        except (httpx.TimeoutException, TimeoutError):
            outcome = "no answer"
            record.hangs.append(_shown(shot))
        except (httpx.TransportError, OSError) as error:
            outcome = f"connection lost ({type(error).__name__})"
            record.faults.append(f"{outcome}: {_shown(shot)}")
        seconds = time.monotonic() - begin
        record.statuses[outcome] += 1
        if seconds > record.longest:
            record.longest, record.slowest = seconds, _shown(shot)


async def send(client: httpx.AsyncClient, shot: Shot, record: Record) -> str:
    """One request; returns its status."""
    content = shot.body.encode("utf-8", "surrogatepass")
    if shot.leave is not None:
        await leave(client, shot, content)
        return "left by its client"
    headers = {"Content-Type": "application/json"}
    reply = await client.post(shot.path, content=content, headers=headers)
    text = reply.content
    if reply.status_code >= 500:
        record.faults.append(f"{reply.status_code}: {_shown(shot)}: {text[:300]!r}")
    elif b'data: {"error"' in text:
        record.faults.append(f"an error in a stream: {_shown(shot)}: {text[-300:]!r}")
    elif reply.headers["content-type"].startswith("application/json"):
        try:
            json.loads(text, parse_constant=_no_json)
        except ValueError as error:
            record.faults.append(f"{error}: {_shown(shot)}: {text[:300]!r}")
    return str(reply.status_code)


async def leave(client: httpx.AsyncClient, shot: Shot, content: bytes) -> None:
    """Send a request on a connection of its own, and close that before the answer is whole."""
    url, patience = client.base_url, client.timeout.read
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST {shot.path} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\n"
    writer.write(
        f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
    )
    await writer.drain()
    if shot.leave == "after the first event":
        with contextlib.suppress(asyncio.IncompleteReadError):  # an error, in place of events
            await asyncio.wait_for(reader.readuntil(b"data:"), patience)
    else:
        await asyncio.sleep(LEAVE_SECONDS)
    writer.close()


async def plain(client: httpx.AsyncClient, body: dict[str, Any]) -> list[str]:
    """The tokens of a plain completion."""
    reply = await client.post(COMPLETIONS, json=body)
    reply.raise_for_status()
    tokens: list[str] = reply.json()["choices"][0]["logprobs"]["tokens"]
    return tokens


def _no_json(name: str) -> None:
    raise ValueError(f"an answer holds {name}, which is not JSON")


def _take(waiting: Iterator[Shot], count: int) -> list[Shot]:
    return [shot for _, shot in zip(range(count), waiting, strict=False)]


def _shown(shot: Shot) -> str:
    body = shot.body if len(shot.body) <= 300 else f"{shot.body[:300]}... ({len(shot.body)})"
    return f"{shot.path} {body}"


if __name__ == "__main__":
    sys.exit(main())
