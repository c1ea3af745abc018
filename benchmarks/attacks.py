"""Attacks a server, and measures how long ``/health`` takes meanwhile.

Starts ``fjx serve`` on a loopback port, runs each attack of attack_kinds.py for some seconds, and
asks ``/health`` fifty times a second from a process of its own. After each attack a plain
completion must be served. Last, SIGTERM is sent while connections and bodies hang. Everything is
bounded in number and time.

    .venv/bin/python benchmarks/attacks.py --output benchmarks/results/attacks.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from attack_kinds import ATTACKS, Target
from attack_templates import with_bombs
from report import about_this_run, write

HOST = "127.0.0.1"
START_SECONDS = 600.0
PROBES_PER_SECOND = 50
QUEUE = 30
SHUTDOWN_TIMEOUT = 3.0
SERVER_OPTIONS = [
    *("--kv-cache-memory", "0.1", "--max-num-seqs", "8", "--max-num-batched-tokens", "64"),
    *("--drafter", "off", "--max-waiting-requests", str(QUEUE), "--header-timeout", "5"),
    *("--body-timeout", "10", "--send-timeout", "5", "--no-log-requests"),
    *("--shutdown-timeout", str(SHUTDOWN_TIMEOUT)),
]
"""Short times, so that what they end is seen to end within an attack."""


class Prober:
    """A process that asks for /health again and again."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, __file__, "--probe", str(port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def latencies(self) -> dict[str, Any]:
        """Since the last call: median, 99th percentile and largest, and how many failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        seconds: list[float | None] = json.loads(self._process.stdout.readline())
        good = sorted(each for each in seconds if each is not None)

        def percentile(share: float) -> float:
            return round(1e3 * good[max(math.ceil(share * len(good)) - 1, 0)], 1) if good else -1

        return {
            "probes": len(seconds),
            "failed": seconds.count(None),
            "p50_ms": percentile(0.5),
            "p99_ms": percentile(0.99),
            "max_ms": percentile(1.0),
        }

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def probe(port: int) -> None:
    """What the prober's process does: a line of input asks for the latencies since the last one."""
    seconds: list[float | None] = []

    def measure() -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=120)
        while True:
            begin = time.perf_counter()
            try:
                connection.request("GET", "/health")
                answer = connection.getresponse()
                answer.read()
                good = answer.status == 200
            except (OSError, http.client.HTTPException):
                good = False
                connection.close()
            took = time.perf_counter() - begin
            seconds.append(took if good else None)
            time.sleep(max(1 / PROBES_PER_SECOND - took, 0.001))

    threading.Thread(target=measure, daemon=True).start()
    for _ in sys.stdin:
        taken, seconds[:] = list(seconds), []
        print(json.dumps(taken), flush=True)


@contextlib.contextmanager
def serving(model: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """A server that is ready, its port, and its log."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fjx", "serve", "--model", model, "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        command[command.index(model)] = with_bombs(model, Path(folder))
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen([*command, *SERVER_OPTIONS], stdout=output, stderr=output)
        try:
            wait_until_ready(process, port, log)
            yield process, port, log
        finally:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://{HOST}:{port}/ready").status_code == 200:
                return
        time.sleep(0.2)
    sys.exit(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def served(port: int) -> float:
    """Seconds that a plain completion takes; tries again while the queue is full."""
    begin = time.monotonic()
    while time.monotonic() - begin < 120:
        body = {"prompt": "a", "max_tokens": 2}
        answer = httpx.post(f"http://{HOST}:{port}/v1/completions", json=body, timeout=120)
        if answer.status_code == 200:
            return round(time.monotonic() - begin, 2)
        time.sleep(0.2)
    return math.inf


def resident_mib(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) // 1024
    return None


async def end_under_attack(process: subprocess.Popen[bytes], target: Target) -> dict[str, Any]:
    """Send SIGTERM while connections, bodies, streams and long texts hang; how the server ends."""
    names = (
        "300 dripping bodies",
        "300 dripping headers",
        "clients that do not read",
        "longest word to tokenize",
    )
    attacks = [asyncio.create_task(ATTACKS[name](target)) for name in names]
    await asyncio.sleep(2.0)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(process.wait, 60)
    seconds = round(time.monotonic() - begin, 2)
    for attack in attacks:
        attack.cancel()
    await asyncio.gather(*attacks, return_exceptions=True)
    return {"seconds": seconds, "exit_code": process.poll(), "shutdown_timeout": SHUTDOWN_TIMEOUT}


def run(model: str, seconds: float, names: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {**about_this_run(), "server_options": SERVER_OPTIONS, "attacks": {}}
    with serving(model) as (process, port, log):
        prober = Prober(port)
        try:
            served(port)
            prober.latencies()
            time.sleep(seconds)
            result["at_rest"] = prober.latencies() | {"resident_mib": resident_mib(process.pid)}
            show("at rest", result["at_rest"])
            for name in names:
                outcome = asyncio.run(ATTACKS[name](Target(HOST, port, seconds)))
                measured = prober.latencies() | {
                    "outcomes": dict(outcome),
                    "plain_completion_afterwards_seconds": served(port),
                    "resident_mib": resident_mib(process.pid),
                }
                prober.latencies()
                result["attacks"][name] = measured
                show(name, measured)
                if process.poll() is not None:
                    sys.exit(f"the server died:\n{log.read_text(errors='replace')[-3000:]}")
        finally:
            prober.close()
        target = Target(HOST, port, seconds + 20)
        result["sigterm"] = asyncio.run(end_under_attack(process, target))
        show("SIGTERM", result["sigterm"])
    return result


def show(name: str, measured: dict[str, Any]) -> None:
    print(f"{name}: {json.dumps(measured)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack")
    parser.add_argument("--only", nargs="+", choices=ATTACKS, help="attacks to run", metavar="NAME")
    parser.add_argument("--output", type=Path, help="write the result here")
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe is not None:
        probe(options.probe)
        return
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    names = options.only or list(ATTACKS)
    write(options.output, run(options.model, options.seconds, names))


if __name__ == "__main__":
    main()
