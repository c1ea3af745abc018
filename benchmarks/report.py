"""What every result says of its run, and how it is written."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from fjx.bench.report import environment


def about_this_run() -> dict[str, Any]:
    """Machine, versions, commit, and the command."""
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    return environment([]) | {"command": shlex.join(["python", script, *sys.argv[1:]])}


def write(output: Path | None, result: dict[str, Any]) -> None:
    """Write what is there so far."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
