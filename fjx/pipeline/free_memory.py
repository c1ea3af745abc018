"""Memory that is free: of the host, as far as this process may use it, and of a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/proc/self/cgroup")
_CGROUP_FOLDERS = {"": Path("/sys/fs/cgroup"), "memory": Path("/sys/fs/cgroup/memory")}
"""Where the groups' files are, by controller: "" stands for version 2."""
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of a group: its limit, what it uses, and what of it can be dropped, a line of memory.stat."""


def free_host_bytes() -> int | None:
    """Memory that this process can still take without swapping, within what its machine has and
    what its container may use; None: the system does not say."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else min([1024 * int(kib), *_left_in_groups()])


def free_device_bytes(device: jax.Device) -> int | None:
    """Memory that is free on a device; a CPU's is the host's. None: it does not say."""
    if device.platform == "cpu":
        return free_host_bytes()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return max(0, int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0)))


def _left_in_groups() -> Iterator[int]:
    """What is left to each control group that this process is in, and that has a limit (Linux)."""
    try:
        lines = _CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controller, path = line.split(":", 2)
        if controller not in _FILES:
            continue
        root = _CGROUP_FOLDERS[controller]
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            left = _left_in(folder, *_FILES[controller])
            if left is not None:
                yield left


def _left_in(folder: Path, limit: str, used: str, droppable: str) -> int | None:
    try:
        most = int((folder / limit).read_text())
        taken = int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return max(0, most - taken + int(stat.get(droppable, 0)))
