"""Whether two plans fit into memory side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from fjx.errors import MemoryFitError
from fjx.pipeline.executor import Executor
from fjx.pipeline.free_memory import free_device_bytes, free_host_bytes
from fjx.pipeline.placed_model import piece_bytes, piece_places, stage_shapes
from fjx.sharding.plan.plan import Deployment, Device
from fjx.wording import format_bytes


def check_fits(
    executors: Sequence[Executor],
    after: Deployment,
    devices: Mapping[Device, jax.Device],
    pages_in_use: Sequence[int],
) -> None:
    """Check that the arrays of a new plan fit beside those of the plan that serves.

    Args:
        executors: those that serve, one for each replica.
        after: what shall serve.
        devices: this process's.
        pages_in_use: KV pages of each executor that hold something: on a CPU, others take no
            memory.

    Raises:
        MemoryFitError: they do not; the message has the numbers.
        MeshError: the plan has a device that is not there.
    """
    needed: Counter[jax.Device] = Counter()
    programs = executors[0].programs
    for index, plan in enumerate(after.replicas):
        places = piece_places(stage_shapes(plan, devices))
        held: tuple[Any, ...] = (None,) * len(places)
        pages = 0
        if index < len(executors):
            held = piece_places(executors[index].pieces.shapes)
            pages = pages_in_use[index]
        for piece, at, before in zip(programs.pieces, places, held, strict=True):
            if at != before:
                for device in at.devices:
                    of_cpu = device.platform == "cpu"
                    needed[device] += piece_bytes(programs, piece, at, pages if of_cpu else None)
    shared = [device for device in needed if device.platform == "cpu"]
    total, free = sum(needed[device] for device in shared), free_host_bytes()
    if shared and free is not None and total > free:
        raise _error(f"the {len(shared)} CPU devices together", total, free)
    for device, size in needed.items():
        left = None if device in shared else free_device_bytes(device)
        if left is not None and size > left:
            raise _error(str(device), size, left)


def _error(where: str, needed: int, free: int) -> MemoryFitError:
    return MemoryFitError(
        f"while the plan changes, both plans hold memory: {where} need {format_bytes(needed)} "
        f"more, {format_bytes(free)} are free; use a plan that moves less, or less KV memory"
    )
