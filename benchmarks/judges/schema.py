"""Lets schemathesis try the API that ``/openapi.json`` describes: does the server do as it says?

    python benchmarks/judges/schema.py --examples 500 --output FILE.json

Schemathesis makes requests from the description, right and wrong ones, and checks each answer
against it: status, media type, schema, headers, time, and that wrong ones are refused. One check is
left out, that what the description allows is never refused: rules between fields cannot be
described. A change of plan compiles programs before it answers, and may take longer than the rest.
Schemathesis is installed in a virtual environment in the cache folder; the server runs a tiny
random model. Ends with status 0 if nothing was found.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from server import Server, command_line, end_servers_on_sigterm, status
from source import virtual_environment
from tiny_model import write_tiny_model

from fjx.bench.report import environment
from fjx.models.loading.source import cache_root

REQUIREMENTS = ("schemathesis==4.32.5",)
SERVER_OPTIONS = (
    "--load-random-weights", "--served-model-name", "tiny", "--max-num-seqs", "8",
    "--max-num-batched-tokens", "64", "--kv-cache-memory", "0.05", "--no-log-requests",
)  # fmt: skip
SEED = 20261201
REQUEST_SECONDS = 120
SHOWN_LINES = 400
SETTINGS = f"""\
[[operations]]
include-path = "/v1/plan"
checks.max_response_time = {REQUEST_SECONDS}
"""


def main() -> int:
    """Run schemathesis and say what it found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=500, help="most cases an operation [500]")
    parser.add_argument("--seed", type=int, default=SEED, help="of the cases")
    parser.add_argument("--cache", type=Path, help="folder for what is downloaded")
    parser.add_argument("--output", type=Path, help="write the result to this file, as JSON")
    arguments = parser.parse_args()
    end_servers_on_sigterm()
    cache = arguments.cache or cache_root(None) / "judges"
    python = virtual_environment(cache / "schemathesis", REQUIREMENTS)
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder))
        server = Server(sys.executable, ["--model", str(model), *SERVER_OPTIONS])
        try:
            done = run(python, server.url, arguments, Path(folder))
            health = status(f"{server.url}/health")
        finally:
            server.stop()
    print(done.stdout)
    result = {
        **environment([]),
        "command": command_line(),
        "schemathesis": REQUIREMENTS[0],
        "seed": arguments.seed,
        "exit_code": done.returncode,
        "health_afterwards": health,
        **counts(done.stdout),
        "printed": done.stdout.splitlines()[-SHOWN_LINES:],
    }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if done.returncode == 0 and health == 200 else 1


def run(
    python: Path, url: str, arguments: argparse.Namespace, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run it on a server, in a folder where it may write."""
    (folder / "schemathesis.toml").write_text(SETTINGS)
    options = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
    options += ["--max-examples", str(arguments.examples), "--workers", "1"]
    options += ["--seed", str(arguments.seed), "--continue-on-failure", "--no-color"]
    options += ["--request-timeout", str(REQUEST_SECONDS), "--generation-database", "none"]
    command = [str(python.with_name("schemathesis")), "run", f"{url}/openapi.json", *options]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )


def counts(printed: str) -> dict[str, int]:
    """Cases that were sent and failures of different kinds, out of the summary."""
    cases = re.search(r"(\d+) generated", printed)
    failures = re.search(r"(\d+) unique failures?", printed)
    return {
        "cases": int(cases[1]) if cases else 0,
        "unique_failures": int(failures[1]) if failures else 0,
    }


if __name__ == "__main__":
    sys.exit(main())
