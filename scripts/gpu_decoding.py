"""Whole decoding steps of a large model's shape, with weights made up; for `gpu_check.py`."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fjx.engine.replica import Replica
from fjx.engine.request import Request
from fjx.models.config import ModelConfig
from fjx.models.granules import Model
from fjx.models.tensors import canonical_shapes
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.executor import Executor
from fjx.pipeline.limits import Limits
from fjx.pipeline.pieces import Loader, step_programs
from fjx.pipeline.placement import live_devices
from fjx.pipeline.programs import Programs
from fjx.sampling_params import SamplingParams
from fjx.sharding.plan import Deployment, Mesh, Plan, Stage

PAGE_SIZE = 16
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}


class Decoder:
    """The engine's executor and scheduler, over weights that were made up."""

    def __init__(self, hf_config: dict[str, Any], num_pages: int) -> None:
        config = ModelConfig.from_hf(hf_config)
        limits = Limits(
            max_model_len=2048,
            max_num_seqs=64,
            max_num_batched_tokens=512,
            num_pages=num_pages,
            page_size=PAGE_SIZE,
            bias_entries=1,
        )
        programs = Programs(Model(config), limits, jnp.dtype(jnp.bfloat16))
        devices = live_devices()
        mesh = Mesh((next(iter(devices)),), (("tensor", 1),))
        plan = Plan((Stage(range(len(programs.model.granules)), mesh),))
        compiler = Compiler(cache_dir=None)
        compiler.register(step_programs(programs, Deployment((plan,)), devices))
        loader = Loader(programs, plan, devices)
        some = 0.02 * np.random.default_rng(0).standard_normal(1 << 20, np.float32)
        self.weight_bytes = 0
        for name, shape in tqdm(canonical_shapes(config).items(), desc="weights", unit="tensor"):
            loader.take(name, np.resize(some, shape))
            # Of the embedding a step reads a row for each token only.
            self.weight_bytes += 2 * int(np.prod(shape)) * (name != "embed.tokens")
        executor = Executor(programs, compiler, loader.pieces())
        # The program of the whole stage, which a serving engine compiles in the background.
        executor.compiler.compile_background()
        executor.compiler.wait_background()
        self._replica = Replica(executor, share_prefixes=False, end_tokens=())
        self._token_bytes = 4 * config.num_layers * config.num_kv_heads * config.head_dim

    def step_seconds(self, requests: int, context: int, steps: int = 30) -> tuple[float, int]:
        """The median of a step with so many requests of about so many tokens; and the bytes of
        their keys and values."""
        params = SamplingParams(temperature=0.0, max_tokens=1000)
        running = [
            Request(f"{i}", context, list(range(i, i + context)), params, 0, 2000, 0.0)
            for i in range(requests)
        ]
        for request in running:
            self._replica.scheduler.add(request)
        while any(request.computed < context for request in running):
            self._step()
        for _ in range(5):
            self._step()
        times = []
        for _ in range(steps):
            begun = time.perf_counter()
            self._step()
            times.append(time.perf_counter() - begun)
        kv_bytes = requests * running[0].computed * self._token_bytes
        for request in running:
            self._replica.scheduler.finish(request)
        return statistics.median(times), kv_bytes

    def _step(self) -> None:
        self._replica.dispatch()
        for microbatch in self._replica.take_in_flight():
            tokens = microbatch.output.read_tokens()
            chosen = [rows.request for rows in microbatch.scheduled if rows.samples]
            for request, token in zip(chosen, tokens, strict=True):
                request.commit(token)
