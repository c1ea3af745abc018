"""The sizes of real models, for checks and tests that need no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
_QWEN3 = {**_LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
_GEMMA3 = {
    **_LLAMA,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "tie_word_embeddings": True,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 168,
    "rope_local_base_freq": 10000.0,
}


@dataclass(frozen=True)
class Sizes:
    """Of a model's programs."""

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    window: int = 0
    """Of layers that do not see everything."""
    soft_cap: float | None = None
    """On attention's logits."""
    logit_cap: float | None = None
    """On those of the vocabulary."""
    family: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Other fields of ``config.json``; empty: only its attention is of interest."""

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """The (in, out) matrices of a layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (self.width, queries + 2 * keys),
            (queries, self.width),
            (self.width, 2 * self.mlp),
            (self.mlp, self.width),
        )

    def hf_config(self, layers: int | None = None) -> dict[str, Any]:
        """Its ``config.json``; ``layers``: as if it had so many."""
        return {
            **self.family,
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers if layers is None else layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            **({"sliding_window": self.window} if self.window else {}),
        }


MODELS = {
    "Llama 3.1 8B": Sizes(32, 4096, 14336, 32, 8, 128, 128256, family=_LLAMA),
    "Llama 3.1 70B": Sizes(80, 8192, 28672, 64, 8, 128, 128256, family=_LLAMA),
    "Qwen3 32B": Sizes(64, 5120, 25600, 64, 8, 128, 151936, family=_QWEN3),
    "Gemma 3 27B": Sizes(62, 5376, 21504, 32, 16, 128, 262208, window=1024, family=_GEMMA3),
    "Gemma 2 9B": Sizes(
        42, 3584, 14336, 16, 8, 256, 256000, window=4096, soft_cap=50.0, logit_cap=30.0
    ),
    "SmolLM2 135M": Sizes(
        30, 576, 1536, 9, 3, 64, 49152, family={**_LLAMA, "tie_word_embeddings": True}
    ),
}
HEADS = {name: (each.heads, each.kv_heads, each.head_dim) for name, each in MODELS.items()}
"""Heads, KV heads, size of a head."""
EIGHTH_OF_70B = {"Llama 3.1 70B on eight GPUs": (8, 1, 128)}
"""Likewise, of each GPU."""
PAGE_SIZE = 16


@dataclass(frozen=True)
class Load:
    """Requests of a step, all alike."""

    requests: int
    rows: int
    """Of each request."""
    context: int
    """Tokens of each, these rows included."""


DECODING = tuple(Load(n, 1, c) for n in (8, 32, 128) for c in (1024, 4096, 32768) if n * c <= 2**21)
VERIFICATION = tuple(Load(n, k, c) for n, c in ((8, 4096), (64, 4096)) for k in (4, 8))
PREFILL = (Load(1, 2048, 2048), Load(4, 512, 2048), Load(1, 2048, 16384))
