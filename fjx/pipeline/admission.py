"""Whether two plans fit into memory side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fjx.pipeline.executor import Executor
from fjx.pipeline.pieces import piece_bytes, piece_places, stage_shapes
from fjx.sharding.errors import MemoryFitError
from fjx.sharding.fields import format_bytes
from fjx.sharding.plan import Deployment, Device

_MEMINFO = Path("/proc/meminfo")


def check_fits(
    executors: Sequence[Executor], after: Deployment, devices: Mapping[Device, jax.Device]
) -> None:
    """Check that the arrays of a new plan fit beside those of the plan that serves.

    Raises:
        MemoryFitError: they do not; the message has the numbers.
        MeshError: the plan has a device that is not there.
    """
    needed: Counter[jax.Device] = Counter()
    programs = executors[0].programs
    for index, plan in enumerate(after.replicas):
        places = piece_places(stage_shapes(plan, devices))
        held: tuple[Any, ...] = (None,) * len(places)
        if index < len(executors):
            held = piece_places(executors[index].pieces.shapes)
        for piece, at, before in zip(programs.pieces, places, held, strict=True):
            if at != before:
                size = piece_bytes(programs, piece, at)
                for device in at.devices:
                    needed[device] += size
    shared = [device for device in needed if device.platform == "cpu"]
    total, free = sum(needed[device] for device in shared), free_host_bytes()
    if shared and free is not None and total > free:
        raise _error(f"the {len(shared)} CPU devices together", total, free)
    for device, size in needed.items():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats and size > stats["bytes_limit"] - stats["bytes_in_use"]:
            raise _error(str(device), size, stats["bytes_limit"] - stats["bytes_in_use"])


def _error(where: str, needed: int, free: int) -> MemoryFitError:
    return MemoryFitError(
        f"while the plan changes, both plans hold memory: {where} need {format_bytes(needed)} "
        f"more, {format_bytes(free)} are free; use a plan that moves less, or less KV memory"
    )


def free_host_bytes() -> int | None:
    """Memory that the host can give without swapping; None: it does not say."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else 1024 * int(kib)
