"""``fjx serve --cluster`` as a user starts it: the embedded model over three Ray nodes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed; the extra `cluster` has it")

from benchmarks.local_cluster.nodes import local_nodes
from fjx.llm import LLM
from fjx.sampling_params import SamplingParams

pytestmark = pytest.mark.slow

OPTIONS = {"max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 32}
PROMPTS = ("The three primary colours are", "def fibonacci(n):", "Once upon a time")
TOKENS = 120


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server whose two stages are on nodes of their own."""
    with local_nodes(["n0", "n1", "n2"]) as nodes:
        flags = [w for k, v in OPTIONS.items() for w in (f"--{k.replace('_', '-')}", str(v))]
        command = [sys.executable, "-m", "fjx", "serve", "--port", "0", "--mesh", "pipeline-2"]
        process = subprocess.Popen(
            [*command, "--cluster", nodes.address, *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            assert process.stderr is not None
            address, lines = "", []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"listening on (http://\S+);", line):
                    address = found[1]
                if "ready in " in line:
                    break
            else:
                raise AssertionError("the server ended:\n" + "".join(lines))
            # Somebody must read what it logs, or it stops at a full pipe.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield address
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_texts_are_those_of_one_process_across_a_change_of_plan(url: str) -> None:
    params = SamplingParams(temperature=0.7, seed=3, max_tokens=TOKENS, ignore_eos=True)
    llm = LLM("smollm2-135m", progress=False, **OPTIONS)
    expected = [output.outputs[0].text for output in llm.generate(list(PROMPTS), params)]
    llm.shutdown()
    texts = [""] * len(PROMPTS)

    def ask(number: int) -> None:
        body = {"prompt": PROMPTS[number], "temperature": 0.7, "seed": 3, "max_tokens": TOKENS}
        answer = httpx.post(f"{url}/v1/completions", json=body | {"ignore_eos": True}, timeout=120)
        texts[number] = answer.json()["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    change = httpx.post(f"{url}/v1/plan", json={"stages": 3}, timeout=120)
    for thread in threads:
        thread.join()
    assert change.status_code == 200, change.text
    assert change.json()["stages"] == 3
    assert texts == expected
