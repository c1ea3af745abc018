"""The machine is read from live devices or from a cluster file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from fjx.errors import MeshError
from fjx.sharding.plan.plan import Device, Mesh
from fjx.sharding.topology.cluster_file import parse_cluster
from fjx.sharding.topology.topology import (
    UNKNOWN_MEMORY,
    DeviceState,
    HostCopy,
    Link,
    Topology,
    live_topology,
)

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


RACKS = """\
[[node]]
name = "a"
rack = "one"
devices = 2
tenants = [1, 0]

[[node]]
name = "b"
rack = "one"
devices = 1
tenants = 2

[[node]]
name = "c"
devices = 1

[links]
within = { bandwidth = 300e9 }
within_rack = { bandwidth = 25e9 }
between = { bandwidth = 10e9 }

[[copy]]
node = "a"
model = "opt-66b"
granules = [0, 1]
age = 60

[[copy]]
node = "c"
model = "opt-66b"
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


def test_racks_tenants_and_copies_in_host_memory_are_read() -> None:
    topology = parse_cluster(RACKS)
    assert [state.tenants for state in topology.devices] == [1, 0, 2, 0]
    assert topology.copies == (
        HostCopy(host="a", model="opt-66b", granules=frozenset({0, 1}), age_seconds=60.0),
        HostCopy(host="c", model="opt-66b"),
    )
    assert topology.link(on(("a", 0)), on(("a", 1))) == Link(300e9)
    assert topology.link(on(("a", 0)), on(("b", 0))) == Link(25e9)
    assert topology.link(on(("b", 0)), on(("c", 0))) == Link(10e9)


def test_a_rack_without_links_of_its_own_is_as_any_two_nodes() -> None:
    topology = parse_cluster(RACKS.replace("within_rack = { bandwidth = 25e9 }\n", ""))
    assert topology.link(on(("a", 0)), on(("b", 0))) == Link(10e9)


def test_an_error_in_a_file_of_thousands_of_nodes_is_short_and_soon_found() -> None:
    nodes = [f'[[node]]\nname = "node-{i}"\ndevices = 8\n' for i in range(2000)]
    text = "\n".join([*nodes, '[[copy]]\nnode = "node-20000"\nmodel = "m"\n'])
    expected = r"line 8002: node must be one of the file's 2000 nodes \(such as node-\d+\), got"
    with pytest.raises(MeshError, match=expected):
        parse_cluster(text)


def test_a_live_machine_is_told_of_its_racks() -> None:
    topology = live_topology(
        [FakeDevice(0), FakeDevice(1, process_index=1), FakeDevice(2, process_index=2)],
        hosts=["a", "b", "c"],
        between=Link(1e9),
        within_rack=Link(2e9),
        racks={"a": "one", "b": "one"},
    )
    assert topology.link(on(("a", 0)), on(("b", 1))) == Link(2e9)
    assert topology.link(on(("a", 0)), on(("c", 2))) == Link(1e9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"one"\ndevices = 1', "2\ndevices = 1"), "line 9: rack must be a text in quotes, got 2"),
        (("[1, 0]", "[1]"), "line 5: tenants must be a whole number of stages, or a list with"),
        (("tenants = 2", "tenants = -1"), "line 11: tenants must be a whole number of stages"),
        (('node = "c"', 'node = "d"'), "line 29: node must be one of a, b and c, got 'd'"),
        (("[0, 1]", '"0-1"'), "line 25: granules must be a list of whole numbers such as"),
        (("age = 60", "age = -1"), "line 26: age must be a number of at least 0, got -1"),
        (("within_rack", "in_rack"), "line 19: unknown key 'in_rack'.*did you mean"),
        (
            ('"c"\ndevices = 1', '"a"\nplatform = "cpu"\nrack = "two"\ndevices = 1'),
            "line 16: a is in rack one already, got 'two'",
        ),
    ],
)
def test_an_error_about_racks_or_copies_names_the_line(
    change: tuple[str, str], message: str
) -> None:
    assert change[0] in RACKS
    with pytest.raises(MeshError, match=f"^cluster file x.toml, {message}"):
        parse_cluster(RACKS.replace(*change, 1), "cluster file x.toml")


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


def test_a_cluster_file_says_more_of_the_devices_that_there_are() -> None:
    there = [("a", 0, 50 << 30), ("a", 1, 90 << 30), ("a", 2, 90 << 30), ("x", 0, 1000)]
    live = Topology(tuple(DeviceState(Device(h, "gpu", i), free) for h, i, free in there))
    file = parse_cluster(CLUSTER)
    known = live.known_by(file)
    assert [(s.device.host, s.device.index, s.free_bytes, s.speed) for s in known.devices] == [
        ("a", 0, 50 << 30, 2.0),
        ("a", 1, 70 << 30, 2.0),  # what others have taken of it is not the cluster's to say
        ("x", 0, 1000, 1.0),
    ]
    assert (known.within, known.between, known.pairs) == (file.within, file.between, file.pairs)


def test_a_cluster_file_of_other_devices_is_refused_with_both_names() -> None:
    live = Topology((DeviceState(Device("b", "gpu", 0)),))
    with pytest.raises(MeshError, match=r"there are b/gpu:0, and the file lists .*b/cpu:0"):
        live.known_by(parse_cluster(CLUSTER))
