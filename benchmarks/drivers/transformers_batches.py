"""Transformers in this process: python transformers_batches.py FOLDER DTYPE, work on stdin.

See batches.py for the form of the work and of the result.
"""

from __future__ import annotations

import sys
import time

import torch
from batches import Batch, Work, run
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
)


class TokenClock(StoppingCriteria):
    """Never stops; keeps the time of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def main() -> None:
    work = Work.read()
    folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
    torch.set_num_threads(work.threads)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.generation_config.eos_token_id = None

    def generate(prompts: list[str]) -> Batch:
        clock = TokenClock()
        begin = time.perf_counter()
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            outputs = model.generate(
                **inputs,
                max_new_tokens=work.max_tokens,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
        seconds = time.perf_counter() - begin
        generated = (outputs.shape[1] - inputs["input_ids"].shape[1]) * len(prompts)
        return Batch(
            prompt_tokens=int(inputs["attention_mask"].sum()),
            output_tokens=generated,
            seconds=seconds,
            decode_seconds=clock.times[-1] - clock.times[0],
        )

    run(work, generate)


if __name__ == "__main__":
    main()
