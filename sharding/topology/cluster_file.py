"""Cluster files: racks, nodes, devices, memory and links in TOML. See docs/mesh-files.md."""

from __future__ import annotations

import difflib
import os
import pathlib
from typing import Any

from fjx.errors import MeshError
from fjx.sharding.plan.plan import Device
from fjx.sharding.table_fields import TableFields, is_integer, parse_size
from fjx.sharding.toml_source import TomlSource
from fjx.sharding.topology.topology import (
    INSTANT,
    UNKNOWN_MEMORY,
    DeviceState,
    HostCopy,
    Link,
    Topology,
)
from fjx.wording import counted, listed, shortened

_MAX_NAMED = 12
"""Nodes that a message names."""


def read_cluster(path: pathlib.Path) -> Topology:
    """Read a cluster file.

    Raises:
        MeshError: the file cannot be read or is wrong; the message names file and line.
    """
    return parse_cluster(read_text(path, "cluster file"), f"cluster file {path}")


def parse_cluster(text: str, label: str = "cluster file") -> Topology:
    """Read the text of a cluster file; ``label`` is what messages call it.

    Raises:
        MeshError: it is wrong; the message names the line.
    """
    source = TomlSource(label, text)
    fields = TableFields(source.content, (), "the cluster file", source.error)
    fields.only(["node", "links", "link", "copy"])
    nodes = fields.tables("node")
    devices: dict[Device, DeviceState] = {}
    racks: dict[str, str] = {}
    for node in nodes:
        for state in _node(node):
            if state.device in devices:
                raise node.error(None, f"{state.device} is listed twice; name each device once")
            devices[state.device] = state
        _note_rack(node, racks)
    if not devices:
        raise fields.error("node", "a cluster needs at least one device; add a [[node]]")
    links = fields.table("links", {})
    links.only(["within", "within_rack", "between"])
    names = {device.host for device in devices}
    pairs = tuple(_pair(link, names) for link in fields.tables("link", []))
    return Topology(
        tuple(devices.values()),
        within=optional_link(links, "within") or INSTANT,
        between=optional_link(links, "between") or INSTANT,
        pairs=pairs,
        within_rack=optional_link(links, "within_rack"),
        racks=tuple(racks.items()),
        copies=tuple(_copy(copy, names) for copy in fields.tables("copy", [])),
    )


def read_text(path: pathlib.Path, noun: str) -> str:
    """A file's text.

    Raises:
        MeshError: it cannot be read.
    """
    shown = shortened(str(path), 200)
    if os.path.exists(path) and not os.path.isfile(path):
        raise MeshError(f"cannot read {noun} {shown}: it is not a file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MeshError(f"cannot read {noun} {shown}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise MeshError(f"{noun} {shown} is not UTF-8 text: {error}") from None
    except ValueError as error:  # a name that no file can have
        raise MeshError(f"cannot read {noun} {shown!r}: {error}") from None


def optional_link(fields: TableFields, key: str) -> Link | None:
    """A link written as a table with ``bandwidth`` in bytes/s and ``latency`` in seconds."""
    if key not in fields:
        return None
    link = fields.table(key)
    link.only(["bandwidth", "latency"])
    return _link(link)


def _link(fields: TableFields) -> Link:
    return Link(fields.number("bandwidth"), fields.number("latency", 0.0, zero=True))


def _pair(fields: TableFields, names: set[str]) -> tuple[frozenset[str], Link]:
    fields.only(["nodes", "bandwidth", "latency"])
    nodes: Any = fields.get("nodes")
    if not (isinstance(nodes, list) and len(nodes) == 2 and set(nodes) <= names):
        raise fields.error("nodes", f"nodes must name two of {_known(names, nodes)}, got {nodes!r}")
    return frozenset(nodes), _link(fields)


def _known(names: set[str], given: object) -> str:
    """The nodes that there are, or of many the one that may be meant."""
    if len(names) <= _MAX_NAMED:
        return listed(sorted(names))
    near = difflib.get_close_matches(str(given), sorted(names), n=1)
    return f"the file's {len(names)} nodes" + (f" (such as {near[0]})" if near else "")


def _node(fields: TableFields) -> list[DeviceState]:
    fields.only(["name", "rack", "platform", "devices", "free_memory", "speed", "tenants"])
    name, platform = fields.text("name"), fields.text("platform", "gpu")
    if "/" in name:
        raise fields.error("name", f"a node's name has no slash, got {name!r}")
    speed = fields.number("speed", 1.0)
    count = fields.integer("devices", least=1)
    free, tenants = _free_memory(fields, count), _tenants(fields, count)
    return [
        DeviceState(Device(name, platform, index), free[index], speed, tenants[index])
        for index in range(count)
    ]


def _note_rack(fields: TableFields, racks: dict[str, str]) -> None:
    name, rack = fields.text("name"), fields.text("rack", None)
    if rack is not None and racks.setdefault(name, rack) != rack:
        raise fields.error("rack", f"{name} is in rack {racks[name]} already, got {rack!r}")


def _tenants(fields: TableFields, count: int) -> list[int]:
    value = fields.get("tenants", 0)
    values = value if isinstance(value, list) else [value] * count
    if len(values) != count or not all(is_integer(each) and each >= 0 for each in values):
        raise fields.error(
            "tenants",
            "tenants must be a whole number of stages, or a list with one for each of "
            f"{counted(count, 'device')}, got {value!r}",
        )
    return values


def _copy(fields: TableFields, names: set[str]) -> HostCopy:
    fields.only(["node", "model", "granules", "age"])
    node = fields.text("node")
    if node not in names:
        raise fields.error("node", f"node must be one of {_known(names, node)}, got {node!r}")
    granules = fields.get("granules", None)
    if granules is not None and not (
        isinstance(granules, list) and all(is_integer(each) and each >= 0 for each in granules)
    ):
        raise fields.error(
            "granules",
            "granules must be a list of whole numbers such as [0, 1, 2]; leave it out for the "
            f"whole model; got {granules!r}",
        )
    return HostCopy(
        host=node,
        model=fields.text("model"),
        granules=None if granules is None else frozenset(granules),
        age_seconds=fields.number("age", 0.0, zero=True),
    )


def _free_memory(fields: TableFields, count: int) -> list[int]:
    value = fields.get("free_memory", UNKNOWN_MEMORY)
    values = value if isinstance(value, list) else [value] * count
    if len(values) != count:
        raise fields.error(
            "free_memory",
            f"free_memory lists {counted(len(values), 'size')} for {counted(count, 'device')}; "
            "give one size for each, or one for all",
        )
    sizes = [parse_size(value) for value in values]
    known = [size for size in sizes if size is not None]
    if len(known) < count:
        raise fields.error(
            "free_memory",
            f'free_memory must be bytes or texts such as "70 GiB", got {value!r}',
        )
    return known
