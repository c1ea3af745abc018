"""The config dataclasses that commands share, with the headings of their options."""

from __future__ import annotations

from fjx.cli.options import Section
from fjx.config import EngineConfig
from fjx.sampling_params import SamplingParams
from fjx.serving.config import ServerConfig

SAMPLING = Section(
    "sampling",
    SamplingParams,
    {
        "sampling": ("temperature", "top_k", "top_p", "min_p", "seed", "n"),
        "where a completion ends": (
            "max_tokens",
            "min_tokens",
            "stop",
            "stop_token_ids",
            "include_stop_str_in_output",
            "ignore_eos",
        ),
        "penalties, bias and masks": (
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
            "allowed_token_ids",
            "bad_words",
        ),
        "what a completion holds": ("logprobs", "prompt_logprobs", "skip_special_tokens"),
        "speculation": ("max_draft_tokens",),
    },
)

ENGINE = Section(
    "engine",
    EngineConfig,
    {
        "model": (
            "model",
            "revision",
            "tokenizer",
            "cache_dir",
            "dtype",
            "quantization",
            "max_model_len",
            "load_random_weights",
        ),
        "devices": (
            "mesh",
            "granule_layers",
            "profile",
            "plan_ladder",
            "granularity_scorer",
            "ttft_objective",
            "itl_objective",
            "decision_log",
        ),
        "cluster": ("cluster", "cluster_file", "cluster_patience", "idle_timeout"),
        "batching": (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_waiting_requests",
            "batch_invariant",
        ),
        "KV memory": (
            "kv_cache_memory",
            "kv_cache_tokens",
            "page_size",
            "enable_prefix_caching",
        ),
        "speculation": (
            "drafter",
            "draft_policy",
            "max_draft_length",
            "max_frontiers",
            "pruning",
            "draft_ahead",
            "draft_mesh",
        ),
    },
)

SERVER = Section("server", ServerConfig)

FILE_SECTIONS = (ENGINE, SERVER, SAMPLING)
"""Every table that a configuration file may hold, whichever command reads it."""
