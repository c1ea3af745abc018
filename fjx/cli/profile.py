"""``fjx profile``: what a model's pieces cost on this machine, measured."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fjx.cli.options import CommandParser, Section, resolve
from fjx.cli.shared_options import check_here
from fjx.config import EngineConfig
from fjx.errors import UserError
from fjx.output_files import check_output_file

if TYPE_CHECKING:
    from fjx.sharding.costs.graph import GranuleGraph

EXAMPLES = """examples:
  fjx profile --model smollm2-135m --output profile.json
  fjx profile --model Qwen/Qwen3-8B --tensor 1 2 4 --context 2048 --output qwen3-8b.json
  fjx plan --mesh pipeline-4 --profile profile.json
  fjx serve --mesh pipeline-4 --profile profile.json
"""


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """What is measured, and how.

    Raises:
        UserError: a value is outside its range, or ``output`` cannot be written.
    """

    model: str = EngineConfig.model
    """A local folder or .gguf file, a Hugging Face hub id, or the name of an embedded model. Only
    its configuration is needed: weights are random."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    cache_dir: Path | None = None
    """Where downloaded models and compiled programs are kept; by default ~/.cache/fjx
    ($FJX_CACHE)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights and KV pages. auto: bfloat16 where the processor multiplies it natively."""
    quantization: Literal["int8", "fp8"] | None = None
    """Store the blocks' matrices in eight bits an entry; by default they have the type of dtype."""
    granule_layers: int | None = None
    """Consecutive layers in one granule; by default about an eighth of the model."""
    tensor: tuple[int, ...] = (1,)
    """Tensor degrees to measure, beside 1."""
    max_num_batched_tokens: int = EngineConfig.max_num_batched_tokens
    """Most rows in one step: steps of the sizes up to it are measured."""
    max_num_seqs: int = EngineConfig.max_num_seqs
    """Most requests in one step; in larger steps each has several rows."""
    context: int = 512
    """Tokens of each request, in KV memory."""
    repeats: int = 10
    """Fewest passes of a piece in a step of each size; their median counts."""
    output: Path | None = None
    """Write the profile to this file, as JSON."""

    def __post_init__(self) -> None:
        for name in ("context", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.tensor) < 1:
            raise UserError(f"tensor degrees must be at least 1, got {min(self.tensor)}")
        if self.granule_layers is not None and self.granule_layers < 1:
            raise UserError(f"granule_layers must be at least 1, got {self.granule_layers}")
        if self.output is not None:
            check_output_file("output", self.output)


PROFILE = Section(
    "profile",
    ProfileConfig,
    {
        "model": ("model", "revision", "cache_dir", "dtype", "quantization", "granule_layers"),
        "what is measured": (
            "tensor",
            "max_num_batched_tokens",
            "max_num_seqs",
            "context",
            "repeats",
        ),
        "output": ("output",),
    },
    in_file=False,
)


def add_options(parser: CommandParser) -> None:
    """Add the options of this command."""
    parser.epilog = EXAMPLES
    parser.add_section(PROFILE)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write.

    Raises:
        UserError: the model cannot be read, a degree does not suit it or the machine, or the
            profile cannot be written.
    """
    config = resolve(arguments, PROFILE)
    check_here(config.model, config.cache_dir)
    graph, machine = _measure(config)
    print(profile_table(graph, machine))
    if config.output is not None:
        from fjx.sharding.costs.profile import graph_to_json

        try:
            config.output.write_text(json.dumps(graph_to_json(graph, machine)) + "\n")
        except OSError as error:
            raise UserError(f"output: cannot write {config.output}: {error.strerror}") from error
        print(f"wrote {config.output}", file=sys.stderr)
    return 0


def _measure(config: ProfileConfig) -> tuple[GranuleGraph, dict[str, str]]:
    from fjx.engine.loading import make_programs
    from fjx.models.costs import model_graph
    from fjx.models.loading.load import load_model_config
    from fjx.models.loading.source import program_cache, resolve_config
    from fjx.pipeline.compiler import Compiler
    from fjx.pipeline.profiler import machine_of, measure
    from fjx.regranularization.plan_target import make_cpu_devices

    engine = EngineConfig(
        model=config.model,
        dtype=config.dtype,
        quantization=config.quantization,
        granule_layers=config.granule_layers,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
    )
    make_cpu_devices(engine.mesh)  # as the engine does
    source = resolve_config(config.model, config.revision, config.cache_dir)
    model_config = load_model_config(source)
    programs = make_programs(engine, model_config)
    buckets = programs.limits.row_buckets
    graph = model_graph(
        programs.model.config, programs.dtype, config.granule_layers, buckets, name=config.model
    )
    measured = measure(
        programs,
        Compiler(program_cache(config.cache_dir)),
        graph,
        degrees=sorted({1, *config.tensor}),
        context=config.context,
        repeats=config.repeats,
    )
    return measured, machine_of(programs, config.context)


def profile_table(graph: GranuleGraph, machine: dict[str, str]) -> str:
    """Milliseconds of each piece in steps of each size, and of a whole step, as text; a table for
    each tensor degree."""
    from fjx.sharding.costs.table import aligned

    alike: dict[object, list[int]] = {}
    for index, granule in enumerate(graph.granules):
        alike.setdefault(granule, []).append(index)
    kinds = [
        ("embed", 1, graph.embed),
        *(
            (_granules_title(indices), len(indices), graph.granules[indices[0]])
            for indices in alike.values()
        ),
        ("head", 1, graph.head),
    ]
    tables = []
    for degree, _ in graph.embed.seconds:
        rows = [("rows", *(title for title, _, _ in kinds), "step")]
        for bucket, size in enumerate(graph.buckets):
            each = [cost.seconds_at(bucket, degree) for _, _, cost in kinds]
            step = sum(s * count for s, (_, count, _) in zip(each, kinds, strict=True))
            rows.append((str(size), *(f"{1e3 * s:#.3g}" for s in (*each, step))))
        title = (
            f"{graph.model}, {machine['weights']}, {machine['context']} tokens of context, on "
            f"{machine['device']}, tensor degree {degree}; ms"
        )
        tables.append("\n".join([title, *aligned(rows, left=0)]))
    return "\n\n".join(tables)


def _granules_title(indices: list[int]) -> str:
    if len(indices) == 1:
        return f"granule {indices[0]}"
    if indices == list(range(indices[0], indices[-1] + 1)):
        return f"each of granules {indices[0]}-{indices[-1]}"
    return f"each of {len(indices)} such as granule {indices[0]}"
