"""The target's own outputs: what a draft head has to foresee."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fjx.distill.config import DistillConfig
from fjx.distill.corpus import TargetSample, read_shard, shard_path, write_shard
from fjx.distill.prompts import HELD_OUT, Prompt, Prompts
from fjx.llm import LLM
from fjx.progress_bar import progress_bar
from fjx.sampling_params import SamplingParams

SHARD_PROMPTS = 512
"""Prompts of one file; what is lost when a run is interrupted."""
_MAX_PROMPT_TOKENS = 400


def generate(config: DistillConfig, folder: Path, progress: bool = True) -> list[TargetSample]:
    """Generate ``config.tokens`` tokens, in files of the folder; those that are there are kept.

    Raises:
        UserError: the model cannot be had, a file of prompts cannot be read, or one of an earlier
            run is broken.
    """
    prompts = Prompts(config.data, config.seed)
    samples: list[TargetSample] = []
    llm = None
    with progress_bar(
        total=config.tokens, desc="Generating", unit="token", unit_scale=True, disable=not progress
    ) as bar:
        for number in itertools.count():
            path = shard_path(folder, number)
            if not path.exists():
                if llm is None:
                    llm = _start(config)
                write_shard(path, _make_shard(config, llm, prompts, number))
            shard = read_shard(path)
            samples += shard
            generated = sum(sample.output_length for sample in samples)
            bar.update(generated - bar.n)
            if generated >= config.tokens:
                break
    if llm is not None:
        llm.shutdown()
    return samples


def _start(config: DistillConfig) -> LLM:
    return LLM(
        config.model,
        progress=False,
        revision=config.revision,
        cache_dir=config.cache_dir,
        dtype=config.dtype,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max(256, config.max_num_seqs),
        kv_cache_tokens=config.max_num_seqs * (_MAX_PROMPT_TOKENS + config.max_tokens + 16),
        seed=config.seed,
    )


def _make_shard(
    config: DistillConfig, llm: LLM, prompts: Prompts, number: int
) -> list[TargetSample]:
    asked, token_ids, params = [], [], []
    for index, prompt, tokens in _prompts_of(config, llm, prompts, number):
        asked.append(prompt)
        token_ids.append(tokens)
        # Every second one is greedy, of those that are held out too.
        number = index // HELD_OUT if prompt.held_out else index
        temperature = config.temperature if number % 2 else 0.0
        params.append(
            SamplingParams(max_tokens=config.max_tokens, temperature=temperature, seed=index)
        )
    outputs = llm.generate(token_ids, params, use_tqdm=False)
    return [
        TargetSample(
            np.array(tokens + output.outputs[0].token_ids, np.int32),
            len(tokens),
            prompt.kind,
            sampling.temperature,
            prompt.held_out,
        )
        for prompt, tokens, sampling, output in zip(asked, token_ids, params, outputs, strict=True)
    ]


def _prompts_of(
    config: DistillConfig, llm: LLM, prompts: Prompts, number: int
) -> Iterator[tuple[int, Prompt, list[int]]]:
    most = min(_MAX_PROMPT_TOKENS, llm.max_model_len - config.max_tokens)
    for index in range(number * SHARD_PROMPTS, (number + 1) * SHARD_PROMPTS):
        prompt = prompts[index]
        tokens = _encode(llm, prompt)
        if 1 <= len(tokens) <= most:
            yield index, prompt, tokens


def _encode(llm: LLM, prompt: Prompt) -> list[int]:
    tokenizer = llm.tokenizer
    if prompt.raw or tokenizer.chat_template is None:
        return tokenizer.encode(prompt.text)
    messages = [{"role": "user", "content": prompt.text}]
    return tokenizer.encode(tokenizer.apply_chat_template(messages), add_special_tokens=False)
