"""Results for people (a table) and for machines (JSON with what it takes to reproduce them)."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from fjx.bench.config import ReportConfig
from fjx.errors import UserError

PACKAGES = ("fjx", "jax", "jaxlib", "flax", "numpy", "httpx")


def environment(arguments: Sequence[str]) -> dict[str, Any]:
    """Describe this run: the command, when, versions, machine, and the commit of fjx's source."""
    return {
        "command": shlex.join(["fjx", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "platform": platform.platform(),
        },
        "commit": _commit(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The checked-out commit, with "-dirty" after it where files differ; None: not a checkout."""
    package = Path(__file__).parent
    describe = ["git", "-C", str(package), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        # Without the listing, an installation inside an unrelated checkout would report that one.
        subprocess.run(
            ["git", "-C", str(package), "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True,
            check=True,
        )
        return subprocess.run(
            [*describe, "--exclude=*"], capture_output=True, check=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def table(title: str, rows: Sequence[tuple[str, object]]) -> str:
    """Lay out labelled values, one a line."""
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {_number(value):>12}" for label, value in rows]
    return "\n".join([title, *lines])


def distribution_table(
    result: Mapping[str, Any], names: Mapping[str, str], percentiles: Sequence[float]
) -> str:
    """Lay out latency distributions in milliseconds: a row a metric, a column a statistic.

    Args:
        result: Holds ``mean_ttft_ms`` and the like.
        names: Metric ("ttft") to row label.
        percentiles: The columns after mean, median and standard deviation.
    """
    statistics = ["mean", "median", "std", *(f"p{percentile:g}" for percentile in percentiles)]
    width = max(len("milliseconds"), *map(len, names.values()))
    lines = [f"  {'milliseconds':<{width}}" + "".join(f"{s:>11}" for s in statistics)]
    for name, label in names.items():
        values = (_number(result[f"{statistic}_{name}_ms"]) for statistic in statistics)
        lines.append(f"  {label:<{width}}" + "".join(f"{value:>11}" for value in values))
    return "\n".join(lines)


def _number(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def publish(result: Mapping[str, Any], text: str, config: ReportConfig) -> None:
    """Write the table to stdout, or, with ``json``, JSON to stdout and the table to stderr.

    Raises:
        UserError: the output file cannot be written.
    """
    encoded = json.dumps(result, indent=2)
    print(text, file=sys.stderr if config.json else sys.stdout)
    if config.json:
        print(encoded)
    if config.output is not None:
        try:
            config.output.write_text(encoded + "\n")
        except OSError as error:
            raise UserError(f"cannot write {config.output}: {error.strerror}") from error
