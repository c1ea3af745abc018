"""What a plan needs of the devices that it will get: bytes and seconds by stage.

Where the stages will run is not known yet, so that seconds are those of a device of speed 1, and
the time to receive a stage's input is left to whoever knows the links.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fjx.errors import MeshError
from fjx.sharding.costs.figures import Place, Workload, stage_figures
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.partition.partition import partition
from fjx.sharding.plan.plan import Device, Mesh, Plan, Stage


@dataclass(frozen=True, kw_only=True)
class StageNeed:
    """What one stage needs. Bytes are those of each of its devices."""

    granules: range
    """Which granules of the model."""
    granule_bytes: tuple[int, ...]
    """Parameters of each granule; embed counts as part of the first one, head of the last."""
    kv_bytes: int = 0
    activation_bytes: int = 0
    """Input and output."""
    seconds: float
    """One pass of a microbatch on devices of speed 1."""
    sent_bytes: int = 0
    """What a microbatch hands to the next stage."""
    tensor: int = 1
    """Tensor-parallel degree: devices of one node over which the stage is split."""

    @property
    def parameter_bytes(self) -> int:
        """Parameters on each device."""
        return sum(self.granule_bytes)

    @property
    def needed_bytes(self) -> int:
        """What the stage takes of each device's memory."""
        return self.parameter_bytes + self.kv_bytes + self.activation_bytes


@dataclass(frozen=True, kw_only=True)
class PlanNeed:
    """What the stages of one plan need, in their order.

    Raises:
        MeshError: there are no stages.
    """

    model: str
    stages: tuple[StageNeed, ...]
    microbatches: int = 1

    def __post_init__(self) -> None:
        if not self.stages:
            raise MeshError(f"a plan of {self.model} needs at least one stage")

    @property
    def devices(self) -> int:
        """How many devices the stages take together."""
        return sum(stage.tensor for stage in self.stages)

    @property
    def parameter_bytes(self) -> int:
        """Parameters on all devices."""
        return sum(stage.parameter_bytes * stage.tensor for stage in self.stages)

    def plan(self, meshes: Sequence[Mesh], *, shared_devices: bool = False) -> Plan:
        """The plan with these meshes, one for each stage."""
        stages = (Stage(s.granules, mesh) for s, mesh in zip(self.stages, meshes, strict=True))
        return Plan(tuple(stages), self.microbatches, shared_devices)


def need_of(graph: GranuleGraph, plan: Plan, workload: Workload) -> PlanNeed:
    """What a plan needs, whatever devices it has now.

    Args:
        graph: The costs of the model's pieces.
        plan: Its stages are taken as they are cut.
        workload: Rows of a microbatch, and the KV memory that must fit.
    """
    bucket, last = graph.bucket_of(workload.rows), len(graph.granules)
    stages = []
    for stage in plan.stages:
        degree, run = stage.mesh.tensor, stage.granules
        figures = stage_figures(graph, run, Place(stage.mesh), workload)
        sizes = [graph.granules[index].parameter_bytes(degree) for index in run]
        sizes[0] += graph.embed.parameter_bytes(degree) if run.start == 0 else 0
        sizes[-1] += graph.head.parameter_bytes(degree) if run.stop == last else 0
        stages.append(
            StageNeed(
                granules=run,
                granule_bytes=tuple(sizes),
                kv_bytes=figures.kv_bytes,
                activation_bytes=figures.activation_bytes,
                seconds=figures.compute_seconds,
                sent_bytes=graph.granules[run.stop - 1].activation_bytes[bucket],
                tensor=degree,
            )
        )
    return PlanNeed(model=graph.model, stages=tuple(stages), microbatches=plan.microbatches)


def granularities(
    graph: GranuleGraph, counts: Iterable[int], workload: Workload, *, tensor: int = 1
) -> tuple[PlanNeed, ...]:
    """What the fastest plan of each number of stages needs, cut by `partition` for equal devices.

    Args:
        graph: The costs of the model's pieces.
        counts: The numbers of stages.
        workload: Rows of a microbatch, and the KV memory that must fit.
        tensor: Tensor-parallel degree of every stage.

    Raises:
        MeshError: the model has not as many granules as stages, or the degree does not suit it.
    """
    needs = []
    for count in counts:
        meshes = [
            Mesh(
                tuple(Device("any", "any", stage * tensor + i) for i in range(tensor)),
                (("tensor", tensor),),
            )
            for stage in range(count)
        ]
        plan = partition(graph, [Place(m) for m in meshes], workload, microbatches=max(count, 1))
        needs.append(need_of(graph, plan, workload))
    return tuple(needs)
