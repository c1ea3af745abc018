"""A tiny random model behind the real engine, without files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.plain import generate_plainly
from fjx.kernels.matmul import Quantization
from fjx.models.config import ModelConfig
from fjx.models.costs import model_graph
from fjx.models.granules import Model
from fjx.models.logit_lens import LogitLens
from fjx.models.tensors import random_tensors
from fjx.pipeline.bound_mesh import live_devices
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.executor import Executor
from fjx.pipeline.limits import Limits
from fjx.pipeline.placed_model import Loader, step_programs
from fjx.pipeline.programs import Programs
from fjx.regranularization.plan_target import live_planner
from fjx.sampling_params import MAX_LOGIT_BIAS, SamplingParams
from fjx.sharding.costs.figures import Workload
from fjx.sharding.plan.plan import Deployment, Device, Mesh, Plan, Stage

VOCABULARY = 384
END = VOCABULARY - 1

HF_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


class LetterTokenizer:
    """Token i is the character chr(0x4E00 + i): text and tokens are the same thing. White space is
    no token."""

    eos_token_ids = (END,)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) - 0x4E00 for letter in text if not letter.isspace()]

    def stream(
        self, skip_special_tokens: bool = True, continuation: bool = False
    ) -> LetterTokenizer:
        return self

    def add(self, ids: list[int]) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)

    def flush(self) -> str:
        return ""


def cpus(*indices: int) -> Mesh:
    """A mesh of these virtual devices."""
    devices = tuple(Device("localhost", "cpu", index) for index in indices)
    return Mesh(devices, (("tensor", len(indices)),))


def one_stage(granules: int) -> Deployment:
    """The whole model on the first device."""
    return Deployment((Plan((Stage(range(granules), cpus(0)),)),))


def staged(*stages: tuple[int, tuple[int, ...]], microbatches: int = 1) -> Plan:
    """A plan of stages with so many granules each, on these virtual devices."""
    begin, made = 0, []
    for count, indices in stages:
        made.append(Stage(range(begin, begin + count), cpus(*indices)))
        begin += count
    return Plan(tuple(made), microbatches)


@cache
def tiny_engine(
    dtype: str = "float32",
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 32,
    num_pages: int = 129,
    overlap: bool = True,
    enable_prefix_caching: bool = True,
    max_waiting_requests: int = 1024,
    one_bucket: bool = False,
    granule_layers: int = 2,
    fused: bool = False,
    layers: int = 4,
    kv_heads: int = 2,
    max_draft_rows: int = 0,
    hidden: bool = False,
    confidences: bool = False,
    lens: bool = False,
    quantization: Quantization | None = None,
    deployment: Deployment | None = None,
    compiler: Compiler | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """An engine of this shape; made once and idle again after each use.

    ``fused``: with the stage programs that are otherwise compiled while it serves. ``compiler``:
    one that keeps the programs of other engines of the same sizes. ``lens``: that can be pruned,
    with maps behind layers 2 and 6.
    """
    limits = Limits(
        max_model_len=256,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        num_pages=num_pages,
        page_size=16,
        bias_entries=MAX_LOGIT_BIAS,
        one_bucket=one_bucket,
        max_draft_rows=max_draft_rows,
        hidden=hidden,
        confidences=confidences,
    )
    config = ModelConfig.from_hf(
        {**HF_CONFIG, "num_hidden_layers": layers, "num_key_value_heads": kv_heads}
    )
    config = replace(config, quantization=quantization)
    known = np.arange(0, VOCABULARY, 2, dtype=np.int32)
    looks = LogitLens(config, known, mapped=(2, 6)) if lens else None
    programs = Programs(Model(config, granule_layers), limits, jnp.dtype(dtype), looks)
    deployment = deployment or one_stage(-(-layers // granule_layers))
    compiler, devices = compiler or Compiler(cache_dir=None), live_devices()
    compiler.register(step_programs(programs, deployment, devices))
    if fused:
        compiler.compile_background()
        compiler.wait_background()
    executors = []
    for plan in deployment.replicas:
        loader = Loader(programs, plan, devices)
        for name, values in random_tensors(config, seed=3, scale=0.3):
            loader.take(name, values)
        executors.append(Executor(programs, compiler, loader.pieces()))
    engine_config = EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_waiting_requests=max_waiting_requests,
        overlap=overlap,
        enable_prefix_caching=enable_prefix_caching,
        seed=0,
    )
    graph = model_graph(config, jnp.dtype(dtype), granule_layers, limits.row_buckets)
    planner = live_planner(graph, Workload(rows=max_num_seqs, kv_tokens=16 * num_pages))
    return Engine(
        engine_config,
        executors,
        LetterTokenizer(),  # type: ignore[arg-type]
        planner,
        clock=clock,
    )


def run(engine: Engine) -> None:
    """Step until nothing is left, then audit the engine."""
    while engine.has_work:
        engine.step()
    engine.check_idle()


def tokens_plainly(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    """What a request gives by the plain loop, on an idle engine's executor."""
    (request,) = generate_plainly(
        engine.executor, engine.scheduler, engine.tokenizer, [(prompt, params)]
    )
    engine.check_idle()
    return request.tokens[request.prompt_len :]


def tokens_alone(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    """What a request gives when nothing else runs."""
    (request,) = engine.add("alone", prompt, params)
    run(engine)
    return request.tokens[request.prompt_len :]
