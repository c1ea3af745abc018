"""OpenVINO GenAI in this process: python openvino_batches.py GGUF, with the work as JSON on stdin.

See batches.py for the form of the work and of the result.
"""

from __future__ import annotations

import sys
import time

import openvino_genai
from batches import Batch, Work, run


def main() -> None:
    work = Work.read()
    pipeline = openvino_genai.LLMPipeline(sys.argv[1], "CPU", INFERENCE_NUM_THREADS=work.threads)
    tokenizer = pipeline.get_tokenizer()
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = work.max_tokens
    config.ignore_eos = True
    config.do_sample = False
    config.apply_chat_template = False

    def generate(prompts: list[str]) -> Batch:
        begin = time.perf_counter()
        result = pipeline.generate(prompts, config)
        seconds = time.perf_counter() - begin
        # The metrics of a batch count the prompt tokens of one request only.
        prompt_tokens = sum(tokenizer.encode(prompt).input_ids.shape[1] for prompt in prompts)
        return Batch(prompt_tokens, result.perf_metrics.get_num_generated_tokens(), seconds)

    run(work, generate)


if __name__ == "__main__":
    main()
