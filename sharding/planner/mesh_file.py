"""Mesh files: which devices a model's stages use, in TOML. See docs/mesh-files.md.

A mesh file says nothing of the machine or the model: `fjx.sharding.planner.planner` brings the
three together.
"""

from __future__ import annotations

import difflib
import os
import pathlib
from dataclasses import dataclass, field
from importlib import resources

from fjx.errors import MeshError
from fjx.sharding.table_fields import TableFields, is_integer
from fjx.sharding.toml_source import TomlSource
from fjx.sharding.topology.cluster_file import optional_link, read_text
from fjx.sharding.topology.topology import Link
from fjx.wording import counted, listed, shortened

READY_MADE = (
    "single",
    "pipeline-2",
    "pipeline-4",
    "pipeline-8",
    "tensor-2",
    "pipeline-2-tensor-2",
    "replicas-2",
)
"""Names of the mesh files that come with the package."""

_STAGE_KEYS = ("platform", "host", "devices", "tensor", "layers", "link")
_FILE_KEYS = ("microbatches", "replicas", "shared_devices", "platform", "host", "link", "stage")


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What a mesh file says of one stage."""

    tensor: int = 1
    """Tensor-parallel degree, which is the number of devices."""
    indices: tuple[tuple[int, ...], ...] | None = None
    """Devices of each replica; None: the next free ones."""
    platform: str | None = None
    """Platform of its devices; None: that of the machine's first device."""
    host: str | None = None
    """Host of the devices, on which indices count; None: they count over all hosts."""
    layers: int | None = None
    """Layers of the model on this stage; None: found by the planner."""
    link: Link | None = None
    """How the stage gets its input; None: as the topology says."""
    line: int | None = field(default=None, compare=False)
    """Where it stands in the file."""


@dataclass(frozen=True, kw_only=True)
class MeshFile:
    """A parsed mesh file, or one made in code."""

    stages: tuple[StageSpec, ...]
    replicas: int = 1
    microbatches: int = 1
    shared_devices: bool = False
    """Whether stages and replicas may have devices in common."""
    label: str = field(default="mesh", compare=False)
    """What messages call it."""

    def devices_needed(self, platform: str, *, default: bool = True) -> int:
        """The number of devices of a platform that this mesh needs.

        Args:
            platform: cpu, gpu or tpu.
            default: Whether stages that name no platform will run on this one.
        """
        stages = [s for s in self.stages if s.platform == platform or (default and not s.platform)]
        listed_ones = {i for s in stages for replica in s.indices or () for i in replica}
        wanted = self.replicas * sum(stage.tensor for stage in stages if stage.indices is None)
        number = max(listed_ones, default=-1) + 1
        free = number - len(listed_ones)
        return number + max(0, wanted - free)


def load_mesh(name_or_path: str) -> MeshFile:
    """Read a ready-made mesh by its name, or a mesh file by its path.

    Raises:
        MeshError: there is none, or it is wrong; the message names file and line, or the names.
    """
    if name_or_path in READY_MADE:
        packaged = resources.files("fjx.sharding") / "configs" / f"{name_or_path}.toml"
        return parse_mesh(packaged.read_text(encoding="utf-8"), f"mesh {name_or_path}")
    path = pathlib.Path(name_or_path)
    if not path.suffix and len(path.parts) == 1 and not os.path.exists(path):
        near = difflib.get_close_matches(name_or_path[:64], READY_MADE, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise MeshError(
            f"there is no mesh {shortened(name_or_path)!r}; expected "
            f"{listed(READY_MADE, last='or')}, or a path to a .toml file{hint}"
        )
    return parse_mesh(read_text(path, "mesh file"), f"mesh file {path}")


def parse_mesh(text: str, label: str = "mesh file") -> MeshFile:
    """Read the text of a mesh file; ``label`` is what messages call it.

    Raises:
        MeshError: it is wrong; the message names the line.
    """
    source = TomlSource(label, text)
    fields = TableFields(source.content, (), "the mesh file", source.error)
    fields.only(_FILE_KEYS)
    replicas = fields.integer("replicas", 1, least=1)
    tables = fields.tables("stage")
    if not tables:
        raise fields.error("stage", "a mesh needs at least one stage; add [[stage]]")
    stages = tuple(
        _stage(table, fields, replicas, source.line_of(table.path), number)
        for number, table in enumerate(tables, start=1)
    )
    given = [number for number, stage in enumerate(stages, start=1) if stage.layers is not None]
    if given and len(given) < len(stages):
        missing = next(n for n in range(1, len(stages) + 1) if n not in given)
        raise tables[missing - 1].error(
            None,
            f"stage {missing} has no layers, but stage {given[0]} has; give layers for every "
            "stage, or for none, which lets the planner cut the model",
        )
    return MeshFile(
        stages=stages,
        replicas=replicas,
        microbatches=_microbatches(fields, len(stages)),
        shared_devices=fields.flag("shared_devices", False),
        label=label,
    )


def _microbatches(fields: TableFields, stages: int) -> int:
    value = fields.get("microbatches", "auto")
    if value == "auto":
        return stages
    if not is_integer(value) or value < 1:
        raise fields.error(
            "microbatches",
            f'microbatches must be "auto" or a whole number of at least 1, got {value!r}',
        )
    return int(value)


def _stage(
    fields: TableFields, file: TableFields, replicas: int, line: int, number: int
) -> StageSpec:
    fields.only(_STAGE_KEYS)
    devices, tensor = fields.get("devices", None), fields.integer("tensor", None, least=1)
    indices: tuple[tuple[int, ...], ...] | None = None
    if isinstance(devices, list):
        indices = _indices(fields, devices, replicas, number)
        count = len(indices[0])
    else:
        count = fields.integer("devices", tensor or 1, least=1)
    if tensor not in (None, count):
        raise fields.error(
            "tensor",
            f"stage {number} has tensor = {tensor} and {counted(count, 'device')}; the axes need "
            "exactly as many devices, so leave one of the two out",
        )
    return StageSpec(
        tensor=count,
        indices=indices,
        platform=fields.text("platform", None) or file.text("platform", None),
        host=fields.text("host", None) or file.text("host", None),
        layers=fields.integer("layers", None, least=1),
        link=optional_link(fields, "link") or optional_link(file, "link"),
        line=line,
    )


def _indices(
    fields: TableFields, devices: list[object], replicas: int, number: int
) -> tuple[tuple[int, ...], ...]:
    """The listed devices of each replica."""
    nested = bool(devices) and all(isinstance(each, list) for each in devices)
    lists: list[object] = devices if nested else [devices]
    for each in lists:
        if not (isinstance(each, list) and each and all(is_integer(i) and i >= 0 for i in each)):
            raise fields.error(
                "devices",
                "devices must be a number of devices, a list of indices such as [0, 1], or a list "
                f"of such lists, one for each replica; got {devices!r}",
            )
        if len(set(each)) < len(each):
            raise fields.error("devices", f"stage {number} lists a device twice: {each!r}")
    found = tuple(tuple(each) for each in lists if isinstance(each, list))
    if len(found) != replicas:
        raise fields.error(
            "devices",
            f"stage {number} lists devices for {counted(len(found), 'replica')}, the mesh has "
            f"{replicas}; list one group for each, such as devices = [[0], [1]], or give a number",
        )
    if len({len(each) for each in found}) > 1:
        raise fields.error(
            "devices", f"stage {number} must have as many devices in every replica, got {devices!r}"
        )
    return found
