"""An engine in a few lines, for who has started it."""

from __future__ import annotations

from collections.abc import Iterator

from fjx.engine.engine import Engine
from fjx.pipeline.held_bytes import kv_bytes
from fjx.sharding.costs.table import deployment_line
from fjx.wording import counted, format_bytes


def engine_lines(engine: Engine) -> Iterator[str]:
    """What is served, with how much context and KV memory, what drafts, and by which plan."""
    config, programs = engine.config, engine.executor.programs
    model, limits = programs.model.config, programs.limits
    kind = (
        programs.dtype.name
        if model.quantization is None
        else (f"{model.quantization} and {programs.dtype.name}")
    )
    yield (
        f"model: {config.model} ({model.family}, {counted(model.num_layers, 'layer')}) in {kind}, "
        f"context of {limits.max_model_len:,} tokens"
    )
    tokens = (limits.num_pages - 1) * limits.page_size
    replicas = len(engine.plans.deployment.replicas)
    each = " for each replica" if replicas > 1 else ""
    yield (
        f"KV memory: {tokens:,} tokens, {format_bytes(kv_bytes(programs))}{each}; steps of up to "
        f"{counted(limits.max_num_seqs, 'request')} and {limits.max_num_batched_tokens} tokens"
    )
    yield f"drafter: {_drafter(engine)}"
    yield f"plan: {deployment_line(engine.plans.deployment)}"


def _drafter(engine: Engine) -> str:
    speculator = engine.speculator
    if speculator is None:
        return "off"
    longest = speculator.drafter.longest
    return f"{speculator.drafter.name}, up to {longest} tokens, policy {speculator.policy.name}"
