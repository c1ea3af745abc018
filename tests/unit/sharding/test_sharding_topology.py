"""The machine is read from live devices or from a cluster file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from fjx.sharding.cluster_file import parse_cluster
from fjx.sharding.errors import MeshError
from fjx.sharding.plan import Device, Mesh
from fjx.sharding.topology import UNKNOWN_MEMORY, Link, live_topology

CLUSTER = """\
[[node]]
name = "a"
devices = 2
free_memory = "70 GiB"
speed = 2.0

[[node]]
name = "b"
platform = "cpu"
devices = 2
free_memory = ["1.5 GiB", 1000]

[[node]]
name = "c"
devices = 1

[links]
within = { bandwidth = 300e9, latency = 5e-6 }
between = { bandwidth = 10e9 }

[[link]]
nodes = ["a", "c"]
bandwidth = 25e9
latency = 1e-5
"""


@dataclass
class FakeDevice:
    id: int
    platform: str = "gpu"
    process_index: int = 0
    stats: Mapping[str, Any] | None = None

    def memory_stats(self) -> Mapping[str, Any] | None:
        return self.stats


def on(*devices: tuple[str, int]) -> Mesh:
    return Mesh(tuple(Device(h, "gpu", i) for h, i in devices), (("tensor", len(devices)),))


def test_live_devices_are_read_with_what_they_have_free() -> None:
    topology = live_topology(
        [
            FakeDevice(0, stats={"bytes_limit": 100, "bytes_in_use": 30}),
            FakeDevice(1, process_index=1, stats={"bytes_limit": 100}),
            FakeDevice(0, platform="cpu"),
        ],
        default_free_bytes=5,
    )
    assert [(str(state.device), state.free_bytes) for state in topology.devices] == [
        ("localhost/gpu:0", 70),
        ("process-1/gpu:1", 5),
        ("localhost/cpu:0", 5),
    ]
    assert topology.platform == "gpu"
    with pytest.raises(ValueError, match="at least one device"):
        live_topology([])


def test_the_devices_of_jax_are_live_devices() -> None:
    import jax

    state = live_topology(jax.devices("cpu")).devices[0]
    assert state.device == Device("localhost", "cpu", 0)
    assert state.free_bytes == UNKNOWN_MEMORY


def test_a_cluster_file_is_read() -> None:
    topology = parse_cluster(CLUSTER)
    assert [(str(s.device), s.free_bytes, s.speed) for s in topology.devices] == [
        ("a/gpu:0", 70 << 30, 2.0),
        ("a/gpu:1", 70 << 30, 2.0),
        ("b/cpu:0", 3 << 29, 1.0),
        ("b/cpu:1", 1000, 1.0),
        ("c/gpu:0", UNKNOWN_MEMORY, 1.0),
    ]
    assert [str(s.device) for s in topology.select(None, "c")] == ["c/gpu:0"]


def test_a_link_is_as_slow_as_its_slowest_pair_of_devices() -> None:
    topology = parse_cluster(CLUSTER)
    assert topology.link(on(("a", 0)), on(("a", 1))) == Link(300e9, 5e-6)
    assert topology.link(on(("a", 0)), on(("c", 0))) == Link(25e9, 1e-5)
    assert topology.link(on(("a", 0), ("b", 0)), on(("c", 0))) == Link(10e9, 1e-5)
    assert topology.link(on(("a", 0), ("b", 0)), on(("b", 0), ("a", 0))) == Link()
    assert Link(10e9, 1e-5).transfer_seconds(10**6) == pytest.approx(1.1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("devices = 1", "devices = 0"), "line 15: devices must be a whole number of at least 1"),
        (('[[node]]\nname = "c"', '[[node]]\nname = "a"'), "line 13: a/gpu:0 is listed twice"),
        (('"1.5 GiB", 1000', "1000"), "line 11: free_memory lists 1 size for 2 devices"),
        (("70 GiB", "70 gigs"), "line 4: free_memory must be bytes or texts such as"),
        (('nodes = ["a", "c"]', 'nodes = ["a", "d"]'), "line 22: nodes must name two of a, b and"),
        (("speed = 2.0", "speed = nan"), "line 5: speed must be a number above 0, got nan"),
        (('name = "a"', 'name = "a/b"'), "line 2: a node's name has no slash"),
        (("between = {", "betwen = {"), "line 19: unknown key 'betwen'.*did you mean 'between'"),
    ],
)
def test_an_error_in_a_cluster_file_names_the_line(change: tuple[str, str], message: str) -> None:
    assert change[0] in CLUSTER
    with pytest.raises(MeshError, match=f"^cluster file x.toml, {message}"):
        parse_cluster(CLUSTER.replace(*change, 1), "cluster file x.toml")
