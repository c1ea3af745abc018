"""Outputs that can be learnt, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fjx.models.loading.source import resolve
from fjx.models.tokenizer import load_tokenizer
from fjx.outputs import CompletionOutput, RequestOutput
from fjx.sampling_params import SamplingParams


class EchoLLM:
    """Goes on from a prompt's last token by a rule."""

    max_model_len = 512

    def __init__(self, model: Path) -> None:
        self.tokenizer = load_tokenizer(resolve(str(model)))
        self.open = True

    def generate(
        self, prompts: Sequence[list[int]], params: Sequence[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        return [
            RequestOutput(
                request_id=str(index),
                prompt=None,
                prompt_token_ids=prompt,
                outputs=[CompletionOutput(0, token_ids=self._go_on(prompt[-1] + index, sampling))],
                finished=True,
            )
            for index, (prompt, sampling) in enumerate(zip(prompts, params, strict=True))
        ]

    def shutdown(self) -> None:
        self.open = False

    def _go_on(self, token: int, sampling: SamplingParams) -> list[int]:
        tokens = []
        for _ in range(sampling.max_tokens or 1):
            token = (5 * token + 3) % 64
            tokens.append(token)
        return tokens
