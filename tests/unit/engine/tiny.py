"""A tiny random model behind the real engine, without files."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp

from fjx.config import EngineConfig
from fjx.engine.batch_builder import BIAS_ENTRIES
from fjx.engine.engine import Engine
from fjx.models.config import ModelConfig
from fjx.models.granules import Model
from fjx.models.tensors import random_tensors
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.executor import Executor, Limits
from fjx.sampling_params import SamplingParams

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
    """Token i is the character chr(0x4E00 + i): text and tokens are the same thing."""

    eos_token_ids = (END,)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) - 0x4E00 for letter in text]

    def stream(
        self, skip_special_tokens: bool = True, continuation: bool = False
    ) -> LetterTokenizer:
        return self

    def add(self, ids: list[int]) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)

    def flush(self) -> str:
        return ""


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
) -> Engine:
    """An engine of this shape; made once and idle again after each use.

    ``fused``: with the stage programs that are otherwise compiled while it serves.
    """
    limits = Limits(
        max_model_len=256,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        num_pages=num_pages,
        page_size=16,
        bias_entries=BIAS_ENTRIES,
        one_bucket=one_bucket,
    )
    config = ModelConfig.from_hf(HF_CONFIG)
    executor = Executor(
        Model(config, granule_layers), limits, jnp.dtype(dtype), Compiler(cache_dir=None)
    )
    if fused:
        executor.compiler.compile_background()
        executor.compiler.wait_background()
    executor.load(lambda place: [place(*t) for t in random_tensors(config, seed=3, scale=0.3)])
    engine_config = EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_waiting_requests=max_waiting_requests,
        overlap=overlap,
        enable_prefix_caching=enable_prefix_caching,
        seed=0,
    )
    return Engine(engine_config, executor, LetterTokenizer())  # type: ignore[arg-type]


def run(engine: Engine) -> None:
    """Step until nothing is left, then audit the engine."""
    while engine.has_work:
        engine.step()
    engine.check_idle()


def tokens_alone(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int]:
    """What a request gives when nothing else runs."""
    (request,) = engine.add("alone", prompt, params)
    run(engine)
    return request.tokens[request.prompt_len :]
