"""Devices, links and storage by name, with where their figures are from."""

from __future__ import annotations

from dataclasses import dataclass

from fjx.sharding.costs.analytic import DeviceFigures, ModelSizes
from fjx.sharding.topology.topology import Link

COMPUTE_EFFICIENCY = 0.5
"""Share of the peak arithmetic that dense products of served models reach. Published model-FLOPs
utilizations of prefill and training lie between 0.4 and 0.6."""
MEMORY_EFFICIENCY = 0.8
"""Share of the peak bandwidth that reading parameters and KV pages reaches."""

NETWORK = Link(bytes_per_second=12.5e9, latency_seconds=10e-6)
"""Between hosts: 100 Gb/s, as in FlexPipe's cluster (arXiv:2510.11938, section 9)."""
WITHIN_HOST = Link(bytes_per_second=25e9, latency_seconds=5e-6)
"""Between devices of a host: PCIe 4.0 x16, of whose 32 GB/s about 25 arrive."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device as its maker describes it."""

    name: str
    memory_bytes: int
    flops_per_second: float
    """Dense 16-bit products."""
    memory_bytes_per_second: float
    source: str

    def figures(self) -> DeviceFigures:
        """What a served model gets of it."""
        return DeviceFigures(
            flops_per_second=COMPUTE_EFFICIENCY * self.flops_per_second,
            memory_bytes_per_second=MEMORY_EFFICIENCY * self.memory_bytes_per_second,
            pass_seconds=20e-6,
            reduce_bytes_per_second=WITHIN_HOST.bytes_per_second,
            reduce_seconds=15e-6,
        )


_GPUS = (
    Gpu(
        name="a100-80gb",
        memory_bytes=80 * 10**9,
        flops_per_second=312e12,
        memory_bytes_per_second=2.039e12,
        source="NVIDIA A100 Tensor Core GPU data sheet, SXM",
    ),
    Gpu(
        name="a100-40gb",
        memory_bytes=40 * 10**9,
        flops_per_second=312e12,
        memory_bytes_per_second=1.555e12,
        source="NVIDIA A100 Tensor Core GPU data sheet, SXM",
    ),
    Gpu(
        name="h100",
        memory_bytes=80 * 10**9,
        flops_per_second=989e12,
        memory_bytes_per_second=3.35e12,
        source="NVIDIA H100 Tensor Core GPU data sheet, SXM",
    ),
    Gpu(
        name="h200",
        memory_bytes=141 * 10**9,
        flops_per_second=989e12,
        memory_bytes_per_second=4.8e12,
        source="NVIDIA H200 Tensor Core GPU data sheet, SXM",
    ),
    Gpu(
        name="l40s",
        memory_bytes=48 * 10**9,
        flops_per_second=362e12,
        memory_bytes_per_second=0.864e12,
        source="NVIDIA L40S data sheet",
    ),
    Gpu(
        name="v100",
        memory_bytes=32 * 10**9,
        flops_per_second=125e12,
        memory_bytes_per_second=0.9e12,
        source="NVIDIA V100 data sheet, SXM2",
    ),
)

GPUS = {gpu.name: gpu for gpu in _GPUS}
"""By name."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where parameters come from, and what starting costs besides. Rates are bytes a second."""

    host_rate: float = 25e9
    """From host memory into one device: PCIe 4.0 x16."""
    disk_rate: float = 5e9
    """From a host's SSDs, shared by its devices: ServerlessLLM (OSDI '24) loads at 5 GB/s and
    more."""
    remote_rate: float = 1.25e9
    """From networked storage, each host: 10 Gb/s."""
    start_seconds: float = 2.0
    """Process and programs, where nothing was started before."""


MODELS = {
    "opt-66b": ModelSizes(
        model="opt-66b",
        hidden_size=9216,
        num_heads=72,
        num_kv_heads=72,
        head_dim=128,
        mlp_width=36864,
        vocab_size=50272,
        mlp_matrices=2,
    ),
    "llama-2-7b": ModelSizes(
        model="llama-2-7b",
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_width=11008,
        vocab_size=32000,
    ),
}
"""Sizes of the models that FlexPipe serves and that are public (arXiv:2205.01068, table 1;
arXiv:2307.09288)."""

LAYERS = {"opt-66b": 64, "llama-2-7b": 32}
"""Their layers."""
