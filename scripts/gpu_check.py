"""What only a GPU can show of fjx, in one run of less than ten minutes.

    python scripts/gpu_check.py --output FILE.json     on a Hopper GPU
    python scripts/gpu_check.py --tune                 there: find and keep the kernels' parameters
    python scripts/gpu_check.py --lower-only           anywhere: whether all compiles for CUDA

The checks are the modules of `gpu_checks`. Each module runs in a process of its own, so that it has
the GPU's memory to itself; where a check fails, ends its process or takes too long, the others
go on in a new one. Each result is printed and written as it comes. docs/gpu.md says more.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import pkgutil
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import gpu_checks
from tqdm import tqdm

FIRST = ("timing", "attention", "decoding")
"""Modules whose results matter most; the others follow by name."""

Take = Callable[[str, Any], None]
"""Takes a check's name and its result so far."""


def main() -> None:
    """Check, print and write."""
    options = parse_options()
    modules = found(options.only)
    if options.lower_only:
        sys.exit(min(lower(modules), 1))
    result: dict[str, Any] = about_this_run() | {"device": gpu(), "checks": {}}
    end = time.monotonic() + 60 * options.minutes
    failed = []
    for name, module in modules.items():
        checks = [check for check in module.checks() if wanted(options.only, name, check)]
        if options.tune:
            checks = ["tune"] if hasattr(module, "tune") else []
        taken = result["checks"][name] = {}

        def take(check: str, value: Any, name: str = name, taken: dict[str, Any] = taken) -> None:
            taken[check] = value
            print(f"{name}/{check}: {json.dumps(value)}", flush=True)
            if options.output is not None:
                options.output.write_text(json.dumps(result, indent=2) + "\n")

        failed += [
            f"{name}/{check}"
            for check in run_apart(module.__name__, checks, take, options.seconds, end)
        ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def found(only: Sequence[str] = ()) -> dict[str, ModuleType]:
    """The modules of checks by name, in the order in which they run."""
    names = sorted(each.name for each in pkgutil.iter_modules(gpu_checks.__path__))
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    modules = {name: importlib.import_module(f"gpu_checks.{name}") for name in names}
    modules = {name: module for name, module in modules.items() if hasattr(module, "checks")}
    known = {*modules, *(f"{name}/{check}" for name in modules for check in modules[name].checks())}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise SystemExit(f"there is no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    chosen = {name.partition("/")[0] for name in only}
    return {name: module for name, module in modules.items() if not only or name in chosen}


def wanted(only: Sequence[str], module: str, check: str) -> bool:
    """Whether a check is to run: ``only`` has modules, and checks as ``module/check``."""
    return not only or module in only or f"{module}/{check}" in only


def lower(modules: dict[str, ModuleType]) -> int:
    """Compile everything for CUDA; how many failed."""
    lowered = failed = 0
    for module, name, compiled in tqdm(_lowered(modules), unit="program"):
        try:
            compiled()
            lowered += 1
        except Exception:
            failed += 1
            tqdm.write(f"FAILED: {module}: {name}\n{traceback.format_exc(limit=-3)}", sys.stderr)
    print(f"{lowered} of {lowered + failed} compile for CUDA")
    return failed


def _lowered(modules: dict[str, ModuleType]) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """What is to compile; where a module cannot even say what, a call that says why."""
    for name, module in modules.items():
        try:
            yield from ((name, *case) for case in module.lowered())
        except Exception as error:
            yield name, "lowered()", partial(_raise, error)


def _raise(error: Exception) -> None:
    raise error


def run_apart(
    module: str, checks: Sequence[str], take: Take, seconds: float, end: float
) -> list[str]:
    """Run a module's checks in a process of its own, and after a failure the rest in a new one: a
    GPU that one has upset is of no use to the others.

    Args:
        module: its full name.
        checks: what to run of it.
        take: gets each result, ``{"error": ...}`` of one that fails, ``{"skipped": ...}`` of one
            for which no time is left.
        seconds: the most for one check.
        end: of all, in seconds of ``time.monotonic``.

    Returns:
        The checks that failed.
    """
    left, failed = list(checks), []
    while left:
        if time.monotonic() >= end:
            for check in left:
                take(check, {"skipped": "no time was left; see --minutes"})
            break
        for check, error in _run_until_failure(module, left, take, seconds, end):
            failed.append(check)
            take(check, error)
    return failed


def _run_until_failure(
    module: str, left: list[str], take: Take, seconds: float, end: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run checks, which are taken off ``left``; the one that failed, if one has, and why."""
    context = multiprocessing.get_context("spawn")
    results, sent = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(module, left, sent), daemon=True)
    process.start()
    sent.close()
    try:
        while left:
            pieces: list[Any] = []
            until = min(time.monotonic() + seconds, end)
            kind = "piece"
            while kind == "piece":
                if not results.poll(max(until - time.monotonic(), 0)):
                    kind, value = "failed", "it took too long; see --seconds and --minutes"
                    break
                kind, value = results.recv()
                if kind == "piece":
                    pieces.append(value)
                    take(left[0], pieces)
            check = left.pop(0)
            if kind == "failed":
                yield check, {"error": value, **({"before": pieces} if pieces else {})}
                return
            if not pieces or value is not None:
                take(check, value)
    except EOFError:
        process.join()
        yield left.pop(0), {"error": f"the process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def work(module: str, checks: Sequence[str], results: Connection) -> None:
    """What the process of a module does: send ``("piece", value)`` for each piece of a check, and
    ``("done", value)`` or ``("failed", why)`` at its end."""
    calls = importlib.import_module(module).checks()
    for check in checks:
        try:
            value = calls[check]()
            if isinstance(value, Iterator):
                for piece in value:
                    results.send(("piece", piece))
                value = None
        except Exception:
            traceback.print_exc()
            results.send(("failed", traceback.format_exc(limit=-3)))
            return
        results.send(("done", value))


def gpu() -> str:
    """What JAX finds, asked in another process: this one must hold none of the GPU's memory."""
    ask = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind)"
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    backend, _, kind = told.stdout.strip().partition(" ")
    if backend != "gpu":
        raise SystemExit(f"no GPU is here; --lower-only needs none\n{told.stderr}")
    return kind


def about_this_run(script: Path = Path(__file__)) -> dict[str, Any]:
    """Machine, versions, commit, and the command."""
    from fjx.bench.report import environment

    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty",
    ]
    told = subprocess.run(git, capture_output=True, text=True, check=False)
    return environment([]) | {
        "command": shlex.join(["python", f"scripts/{script.name}", *sys.argv[1:]]),
        "commit": told.stdout.strip() or None,
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lower-only", action="store_true", help="needs no GPU")
    parser.add_argument("--tune", action="store_true", help="measure parameters, and keep them")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="modules, or module/check"
    )
    parser.add_argument("--output", type=Path, help="also write the result to this file")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it [9]")
    parser.add_argument("--seconds", type=float, default=120, help="for each check [120]")
    return parser.parse_args()


if __name__ == "__main__":
    main()
