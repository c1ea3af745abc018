"""What a server has in memory while its plan changes again and again, and whether it stays right.

    python benchmarks/soak.py changes --changes 500 --output FILE.json --picture FILE.svg
    python benchmarks/soak.py mixed --minutes 60 --output FILE.json --picture FILE.svg

- *changes*: so many changes of plan, half of them idle, half under load.
- *mixed*: so many minutes of load, with long prompts, aborts, and a change of plan now and then.

Every answer is compared with that of a server that decodes plainly: one device, no drafts. Prints
JSON: resident memory with its dispersion, answers, and what was run. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from process import free_port, stop
from report import about_this_run, write
from resident import Sample, memory_of, picture, recorded, summary
from soak_load import Asked, Load, answers, mixed_requests

START_SECONDS = 1800.0
CHANGE_SECONDS = 600.0
POINTS = 400
"""Of each part, written down and drawn."""


class Server:
    """A server's process, and its plan."""

    def __init__(self, pid: int, url: str) -> None:
        self.pid, self.url = pid, url
        self.changes = 0
        self.refused: list[str] = []

    async def change(self, mesh: str) -> None:
        """Change to another plan, and wait for it."""
        async with httpx.AsyncClient(
            base_url=self.url, timeout=CHANGE_SECONDS, trust_env=False
        ) as client:
            answer = await client.post("/v1/plan", json={"mesh": mesh})
        if answer.status_code == 200:
            self.changes += 1
        else:
            self.refused.append(answer.text[:300])


def main() -> None:
    """Run, and print what was found."""
    options = parse_options()
    requests = mixed_requests(options.requests, options.longest, options.seed)
    with serving(options, ["--mesh", "single", "--drafter", "off"]) as server:
        requests = asyncio.run(answers(server.url, requests))
    parts: list[tuple[str, Sequence[Sample]]] = []
    with serving(options, ["--mesh", options.meshes[0], *options.serve]) as server:
        result: dict[str, Any] = {
            "about": about_this_run(),
            "meshes": options.meshes,
            "serve": [*common(options), *options.serve],
            "ready": asdict(memory_of(server.pid)),
        }
        warm = asyncio.run(answers(server.url, requests[:1]))
        result["first_answer"] = asdict(memory_of(server.pid))
        result["first_answer_right"] = warm == requests[:1]
        for name, run in parts_of(options, server, requests).items():
            with recorded(server.pid, lambda: server.changes, options.every) as record:
                before = server.changes
                result[name] = asyncio.run(run())
            samples = [replaced(each, before) for each in record.samples]
            result[name]["memory"] = summary(samples)
            result[name]["samples"] = [asdict(each) for each in thinned(samples)]
            parts.append((name, thinned(samples)))
            result["refused"] = server.refused
            write(options.output, result)
        result["peak"] = memory_of(server.pid).peak
    write(options.output, result)
    if options.picture is not None:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        title = f"Memory of fjx serve, {options.model}, {' and '.join(options.meshes)}"
        options.picture.write_text(picture(title, parts), encoding="utf-8")
    for name, _ in parts:
        del result[name]["samples"]
    print(json.dumps(result, indent=2))


def parts_of(
    options: argparse.Namespace, server: Server, requests: Sequence[Asked]
) -> dict[str, Callable[[], Any]]:
    """What is run one after the other, by name."""
    meshes = itertools.cycle([*options.meshes[1:], options.meshes[0]])
    load = partial(Load, server.url, requests, options.in_flight)
    if options.what == "mixed":
        return {"mixed": partial(mixed, options, server, load(options.seed), meshes)}
    idle = options.changes // 2
    return {
        "idle": partial(changes, server, None, meshes, idle),
        "under load": partial(changes, server, load(options.seed), meshes, options.changes - idle),
    }


async def changes(
    server: Server, load: Load | None, meshes: Iterator[str], count: int
) -> dict[str, Any]:
    """Change the plan so many times, one change after the other."""
    async with contextlib.AsyncExitStack() as stack:
        if load is not None:
            await stack.enter_async_context(load.running())
        for _ in range(count):
            await server.change(next(meshes))
    return {} if load is None else {"answers": load.outcomes.as_dict()}


async def mixed(
    options: argparse.Namespace, server: Server, load: Load, meshes: Iterator[str]
) -> dict[str, Any]:
    """Load for a while, and a change of plan every so many seconds."""
    end = time.monotonic() + 60 * options.minutes
    async with load.running():
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(options.change_every, left))
            await server.change(next(meshes))
    return {"answers": load.outcomes.as_dict()}


@contextlib.contextmanager
def serving(options: argparse.Namespace, arguments: Sequence[str]) -> Iterator[Server]:
    """A server that is ready, and ended afterwards."""
    port = free_port()
    fjx = [sys.executable, "-m", "fjx", "serve", "--host", "127.0.0.1", "--port", f"{port}"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*fjx, *common(options), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            server, begun = Server(process.pid, f"http://127.0.0.1:{port}"), time.monotonic()
            while not is_ready(server.url):
                if process.poll() is not None or time.monotonic() - begun > START_SECONDS:
                    log.seek(0)
                    sys.exit(log.read().decode(errors="replace")[-3000:])
                time.sleep(0.2)
            yield server
        finally:
            stop(process)


def common(options: argparse.Namespace) -> list[str]:
    """What both servers are told."""
    sizes = ["--max-num-seqs", f"{options.max_num_seqs}"]
    sizes += ["--max-num-batched-tokens", f"{options.max_num_batched_tokens}"]
    if options.kv_cache_memory is not None:
        sizes += ["--kv-cache-memory", f"{options.kv_cache_memory}"]
    return ["--model", options.model, *sizes]


def is_ready(url: str) -> bool:
    """Whether it answers."""
    try:
        return httpx.get(f"{url}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def replaced(sample: Sample, before: int) -> Sample:
    """The sample with the changes of its part alone."""
    return Sample(sample.seconds, sample.resident, sample.anonymous, sample.count - before)


def thinned(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Some of the samples, the last one among them."""
    every = max(1, len(samples) // POINTS)
    return [*samples[:-1:every], samples[-1]]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("what", choices=("changes", "mixed"))
    add("--changes", type=int, default=500, help="of plan, in all [500]")
    add("--minutes", type=float, default=60.0, help="of mixed load [60]")
    add("--change-every", type=float, default=30.0, help="seconds of mixed load [30]")
    add("--meshes", nargs="+", default=["single", "pipeline-2"], help="gone through in turn")
    add("--model", default="smollm2-135m")
    add("--max-num-seqs", type=int, default=8)
    add("--max-num-batched-tokens", type=int, default=64)
    add("--kv-cache-memory", type=float, help="GiB; by default as the server has it")
    add("--serve", nargs=argparse.REMAINDER, default=[], help="more options of the server, last")
    add("--requests", type=int, default=48, help="different ones [48]")
    add("--longest", type=int, default=1200, help="words of the long prompts [1200]")
    add("--in-flight", type=int, default=6, help="requests at once [6]")
    add("--every", type=float, default=0.5, help="seconds from look to look at memory [0.5]")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="also write the result to this file")
    add("--picture", type=Path, help="draw memory over time into this SVG file")
    options = parser.parse_args()
    if len(options.meshes) < 2:
        parser.error("--meshes needs at least two, or no plan changes")
    return options


if __name__ == "__main__":
    main()
