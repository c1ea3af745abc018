"""Compile all that `gpu_check.py` runs for an H100, on a machine without a GPU.

    pip install "jax[cuda13]"
    python scripts/compile_for_h100.py --output FILE.json

XLA compiles for a GPU that is only described, and NVIDIA's assembler says what each kernel needs:
registers, what it spills of them, shared memory. What is told of a program: its temporary memory,
and how many kernels it starts. XLA measures nothing here, and so takes other tiles for its matrix
products than on a GPU. docs/gpu.md says what was found so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA is told of it: an H100 SXM, as its own device query gives it."""
_STARTS = re.compile(r" (?:fusion|custom-call|copy|copy-start)\(")
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_USED = re.compile(r"Used (\d+) registers")
_SPILLED = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def main() -> None:
    """Compile, print and write."""
    options = parse_options()
    set_up()
    import gpu_check

    from fjx.kernels import mosaic

    compile_for_h100 = compiler()
    programs: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    failed = 0

    def compiles(function: Callable[..., Any], *given: Any) -> str:
        told.append(compile_for_h100(function, *given))
        return ""

    with mock.patch.object(mosaic, "lowers", compiles):
        for name, module in gpu_check.found(options.only).items():
            for case, compile_case in module.lowered():
                try:
                    compile_case()
                except Exception:
                    failed += 1
                    why = traceback.format_exc(limit=-3)
                    print(f"FAILED: {name}: {case}\n{why}", file=sys.stderr)
                programs += [{"module": name, "case": case, **each} for each in told]
                for each in programs[len(programs) - len(told) :]:
                    print(json.dumps(each), flush=True)
                told.clear()
                if options.output is not None:
                    about = gpu_check.about_this_run(Path(__file__))
                    result = about | {"device": "an H100, described", "programs": programs}
                    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(programs)} programs compile for an H100, {failed} do not")
    sys.exit(min(failed, 1))


def set_up() -> None:
    """The environment in which JAX finds its CUDA plugin without a GPU, and the assembler."""
    try:
        import nvidia.cu13
    except ImportError:
        raise SystemExit(
            'NVIDIA\'s compiler is not installed; use pip install "jax[cuda13]"'
        ) from None
    cuda = next(iter(nvidia.cu13.__path__))
    os.environ |= {
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
        "MOSAIC_GPU_CUDA_ROOT": cuda,
        "MOSAIC_GPU_DUMP_PTXAS": "1",
        "PATH": f"{cuda}/bin{os.pathsep}{os.environ['PATH']}",
        "XLA_FLAGS": f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={cuda}",
    }


def compiler() -> Callable[..., dict[str, Any]]:
    """Compiles a function for arguments of these shapes: what is told of program and kernels."""
    import jax
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    there = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def compile_for_h100(function: Callable[..., Any], *given: Any) -> dict[str, Any]:
        placed = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=there), given
        )
        with printed() as told:
            lowered = jax.jit(function).trace(*placed).lower(lowering_platforms=("cuda",))
            compiled = lowered.compile()
        return {
            "starts": len(_STARTS.findall(compiled.as_text().partition("\nENTRY ")[2])),
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            "kernels": kernels_of("".join(told)),
        }

    return compile_for_h100


def kernels_of(report: str) -> list[dict[str, Any]]:
    """What the assembler said of each kernel of fjx's; XLA's own it is not asked about."""
    kernels = []
    for entry in _ENTRY.split(report)[1:]:
        if (name := re.fullmatch(r"(\w+?)_mosaic_gpu_kernel", entry)) is not None:
            kernels.append({"name": name[1]})
        elif kernels and "registers" not in kernels[-1]:
            used, spilled = _USED.search(entry), _SPILLED.search(entry)
            assert used is not None
            assert spilled is not None
            kernels[-1] |= {
                "registers": int(used[1]),
                "spilled_bytes": int(spilled[1]) + int(spilled[2]),
            }
    return kernels


@contextmanager
def printed() -> Iterator[list[str]]:
    """What is printed meanwhile, also by compilers that are no Python; it is printed after all
    where something is raised."""
    told: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield told
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, number in zip(kept, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            file.seek(0)
            told.append(file.read())
            if sys.exc_info()[0] is not None:
                print("".join(told), file=sys.stderr)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="modules of checks")
    parser.add_argument("--output", type=Path, help="also write the result to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
