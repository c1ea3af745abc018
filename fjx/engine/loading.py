"""A model's programs, sizes and weights, as executors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np

from fjx.config import EngineConfig
from fjx.engine.kv_size import kv_slots, kv_token_bytes
from fjx.errors import UserError
from fjx.kernels import tuning
from fjx.kernels.matmul import can_multiply_quantized, multiplies_bfloat16
from fjx.models.config import ModelConfig
from fjx.models.costs import model_graph
from fjx.models.cuts import check_cuts
from fjx.models.granules import Model
from fjx.models.loading.load import load_model_config, load_params
from fjx.models.loading.source import (
    ModelSource,
    cache_root,
    program_cache,
    resolve,
    resolve_tokenizer,
)
from fjx.models.logit_lens import LogitLens
from fjx.models.tensors import random_tensors
from fjx.models.tokenizer import Tokenizer, load_tokenizer
from fjx.pipeline.bound_mesh import live_devices
from fjx.pipeline.compiler import Compiler, ProgramSpec
from fjx.pipeline.executor import Executor
from fjx.pipeline.limits import Limits
from fjx.pipeline.placed_model import Loader, step_programs
from fjx.pipeline.profiler import read_profile_of
from fjx.pipeline.programs import Programs
from fjx.regranularization.plan_target import Planner, live_planner
from fjx.sampling_params import MAX_LOGIT_BIAS
from fjx.sharding.costs.figures import Workload
from fjx.sharding.plan.plan import Deployment

logger = logging.getLogger(__name__)

_LONG_DRAFTS = 8
"""Requests that may have the longest draft at once."""


def find_model(config: EngineConfig) -> tuple[ModelSource, ModelConfig, Tokenizer]:
    """Where the model is, its sizes, and its tokenizer.

    Raises:
        UserError: the model or the tokenizer cannot be had.
    """
    source = resolve(config.model, config.revision, config.cache_dir)
    of_tokenizer = source
    if config.tokenizer is not None:
        of_tokenizer = resolve_tokenizer(config.tokenizer, None, config.cache_dir)
    return source, load_model_config(source), load_tokenizer(of_tokenizer)


def load_executors(
    config: EngineConfig,
    source: ModelSource,
    programs: Programs,
    deployment: Deployment,
    progress: bool,
    more_programs: Iterable[ProgramSpec] = (),
    observers: Sequence[Callable[[str, np.ndarray], None]] = (),
) -> list[Executor]:
    """Read weights and compile programs, side by side: an executor for each replica.

    Args:
        config: how it serves.
        source: the model's files.
        programs: what runs.
        deployment: where.
        progress: show bars on stderr.
        more_programs: others that are needed, too.
        observers: are shown the name and values of each canonical tensor.

    Raises:
        UserError: the weights cannot be had.
    """
    devices, model_config = live_devices(), programs.model.config
    tuning.use(cache_root(config.cache_dir))
    compiler = Compiler(program_cache(config.cache_dir), on_demand=not config.warmup)
    compiler.register(step_programs(programs, deployment, devices))
    compiler.register(more_programs)
    loaders = [Loader(programs, plan, devices) for plan in deployment.replicas]

    def take(name: str, values: np.ndarray) -> None:
        for loader in loaders:
            loader.take(name, values)
        for observer in observers:
            observer(name, values)

    if config.load_random_weights:
        read = partial(_place_random, model_config)
    else:
        read = partial(load_params, source, model_config, progress=progress)
    with ThreadPoolExecutor(1, thread_name_prefix="fjx-load") as pool:
        loading = pool.submit(read, take)
        check_cuts(programs.model, programs.dtype)
        if config.warmup:
            compiler.compile_all(progress=progress)
        loading.result()
    return [Executor(programs, compiler, loader.pieces()) for loader in loaders]


def make_programs(
    config: EngineConfig,
    model_config: ModelConfig,
    *,
    hidden: bool = False,
    confidences: bool = False,
    lens: LogitLens | None = None,
) -> Programs:
    """What an engine of this configuration runs; ``hidden``, ``confidences``: see `Limits`;
    ``lens``: see `Programs`.

    Raises:
        UserError: the configuration does not fit the model.
    """
    dtype = _dtype(config)
    model_config = replace(model_config, quantization=config.quantization)
    limits = _limits(config, model_config, dtype)
    limits = replace(limits, hidden=hidden, confidences=confidences)
    return Programs(Model(model_config, config.granule_layers), limits, dtype, lens)


def make_planner(config: EngineConfig, programs: Programs) -> Planner:
    """For plans that hold all of the KV memory; a stage's time is that of a full decode step."""
    limits, model = programs.limits, programs.model
    graph = model_graph(model.config, programs.dtype, config.granule_layers, limits.row_buckets)
    if config.profile is not None:
        graph = read_profile_of(config.profile, graph, limits.max_num_seqs)
    kv_tokens = limits.num_pages * limits.page_size
    return live_planner(graph, Workload(rows=limits.max_num_seqs, kv_tokens=kv_tokens))


def _place_random(model_config: ModelConfig, place: Callable[[str, np.ndarray], None]) -> None:
    for name, values in random_tensors(model_config, seed=0):
        place(name, values)


def _dtype(config: EngineConfig) -> jnp.dtype:
    name = config.dtype
    if name == "auto":
        name = "bfloat16" if multiplies_bfloat16() else "float32"
    dtype: jnp.dtype = jnp.dtype(name)
    if config.quantization is not None and not can_multiply_quantized(dtype):
        raise UserError(
            f"quantization {config.quantization} cannot be used with dtype {name} on this "
            "platform, which multiplies such matrices in bfloat16; leave out dtype or quantization"
        )
    return dtype


def _limits(config: EngineConfig, model: ModelConfig, dtype: jnp.dtype) -> Limits:
    """Sizes of batches and KV memory; the context never exceeds what the pages can hold."""
    wanted = config.max_model_len or model.max_positions
    if config.max_model_len is not None and config.max_model_len > model.max_positions:
        raise UserError(
            f"max_model_len is {config.max_model_len}, but the model was trained for "
            f"{model.max_positions} positions; use at most that"
        )
    slots = kv_slots(config, model, dtype, wanted)
    useful = config.max_num_seqs * (wanted + config.page_size)
    pages = min(slots, useful) // config.page_size
    held, token_bytes = pages * config.page_size, kv_token_bytes(model, dtype)
    if held < (config.max_model_len or 2 * config.page_size):
        raise UserError(
            f"KV memory holds {held} tokens, but max_model_len is {wanted}; raise kv_cache_memory "
            f"({held * token_bytes / 2**30:.2f} GiB; a token takes {token_bytes} bytes) or lower "
            "max_model_len"
        )
    if held < wanted:
        logger.warning(
            "the context is limited to %s of %s tokens by KV memory; for all of it, raise "
            "kv_cache_tokens to %d or kv_cache_memory to %.2f",
            f"{held:,}",
            f"{wanted:,}",
            wanted + config.page_size,
            (wanted + config.page_size) * token_bytes / 2**30 + 0.005,
        )
    # one shape for all steps: the smallest that gives every running request a row
    rows = config.max_num_seqs if config.batch_invariant else config.max_num_batched_tokens
    return Limits(
        max_model_len=min(wanted, held),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=rows,
        num_pages=pages + 1,  # page 0 is never handed out
        page_size=config.page_size,
        bias_entries=MAX_LOGIT_BIAS,
        one_bucket=config.batch_invariant,
        max_draft_rows=min(_draft_rows(config), rows - config.max_num_seqs),
    )


def _draft_rows(config: EngineConfig) -> int:
    """Drafted tokens that a step may verify: one for each request, or a few long drafts."""
    if not config.drafts:
        return 0
    return max(config.max_num_seqs, _LONG_DRAFTS * config.max_draft_length)
