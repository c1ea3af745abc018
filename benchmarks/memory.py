"""How much is resident while 64 requests of 1,024 tokens are served in float32.

    python benchmarks/memory.py                        # minutes: every prompt is computed
    python benchmarks/memory.py --prompt-tokens 64     # short prompts, the same KV memory

Prints JSON: bytes resident at their highest when ready and at the end, and what was run.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from fjx import LLM, SamplingParams


def peak() -> int:
    """The most that this process ever had resident, in bytes."""
    # Not getrusage: a child's ru_maxrss begins at the peak of the process that started it.
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Serve the requests, all at once, and print what was resident."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024, help="KV memory of each [1024]")
    parser.add_argument("--prompt-tokens", type=int, default=944)
    parser.add_argument("--output-tokens", type=int, default=80)
    options = parser.parse_args()
    llm = LLM(
        options.model,
        dtype="float32",
        max_model_len=options.context,
        max_num_seqs=options.requests,
        kv_cache_tokens=options.requests * options.context,
        progress=False,
    )
    ready = peak()
    params = SamplingParams(temperature=0, max_tokens=options.output_tokens, ignore_eos=True)
    vocabulary = llm.tokenizer.vocab_size
    first = min(300, vocabulary // 2)
    spread = min(40000, vocabulary - first)
    prompts = [
        [(i * 7919 + j * 104729) % spread + first for j in range(options.prompt_tokens)]
        for i in range(options.requests)
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    print(
        json.dumps(
            {
                "ready": ready,
                "peak": peak(),
                "requests": len(outputs),
                "tokens": sum(
                    len(o.prompt_token_ids) + len(o.outputs[0].token_ids) for o in outputs
                ),
                "preemptions": llm.stats().num_preemptions,
            }
        )
    )


if __name__ == "__main__":
    main()
