"""What the host can give: its own memory, and what a container leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import fjx.pipeline.free_memory as module
from fjx.pipeline.free_memory import free_host_bytes

GIB = 1 << 30


class Host:
    """Files as Linux has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meminfo = folder / "meminfo"
        self.cgroups = folder / "cgroup"
        self.meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable: {20 * GIB // 1024} kB\n")

    def group(self, path: str, files: dict[str, str]) -> None:
        """A control group and its files."""
        folder = self.folder / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    monkeypatch.setattr(module, "_MEMINFO", host.meminfo)
    monkeypatch.setattr(module, "_CGROUPS", host.cgroups)
    folders = {"": tmp_path / "v2", "memory": tmp_path / "v1"}
    monkeypatch.setattr(module, "_CGROUP_FOLDERS", folders)
    return host


def version_2(most: str, used: int, droppable: int) -> dict[str, str]:
    return {
        "memory.max": most,
        "memory.current": f"{used}",
        "memory.stat": f"anon 5\ninactive_file {droppable}\n",
    }


def test_without_containers_it_is_what_the_system_says(host: Host) -> None:
    assert free_host_bytes() == 20 * GIB


def test_a_system_that_does_not_say(host: Host) -> None:
    host.meminfo.unlink()
    assert free_host_bytes() is None


def test_a_container_leaves_less_but_what_it_can_drop(host: Host) -> None:
    host.cgroups.write_text("0::/pod/box\n")
    host.group("v2/pod/box", version_2(f"{4 * GIB}", 3 * GIB, GIB // 2))
    assert free_host_bytes() == 3 * GIB // 2


def test_the_groups_around_a_container_count_too(host: Host) -> None:
    host.cgroups.write_text("0::/pod/box\n")
    host.group("v2/pod/box", version_2("max", 3 * GIB, 0))
    host.group("v2/pod", version_2(f"{8 * GIB}", 6 * GIB, 0))
    assert free_host_bytes() == 2 * GIB


def test_groups_of_the_first_version(host: Host) -> None:
    host.cgroups.write_text("9:pids:/box\n4:memory:/box\n0::/\n")
    host.group(
        "v1/box",
        {
            "memory.limit_in_bytes": f"{4 * GIB}",
            "memory.usage_in_bytes": f"{GIB}",
            "memory.stat": "total_inactive_file 0\n",
        },
    )
    assert free_host_bytes() == 3 * GIB


def test_a_group_over_its_limit_leaves_nothing(host: Host) -> None:
    host.cgroups.write_text("0::/\n")
    host.group("v2", version_2(f"{GIB}", 2 * GIB, 0))
    assert free_host_bytes() == 0
