"""Processor time of the host in each step of steady decoding.

    python benchmarks/host_overhead.py
    python benchmarks/host_overhead.py --layers 32

Decodes with many requests at once, text included, greedily and at temperature 0.8, and takes the
processor time of the engine's thread inside `Engine.step` without what reading tokens took: that
one waits for the device. What XLA runs on the calling thread counts as the host's. With
``--layers`` the model is a Llama of so many layers, so narrow that its weights, random ones, fit
anywhere: what the host does depends on how many arrays a model has, not on how large they are.
Prints JSON: milliseconds of each phase, and what was run.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import about_this_run, write
from tqdm import trange

from fjx.bench.datasets import random_tokens
from fjx.bench.metrics import distribution
from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.start import start_engine
from fjx.models.loading.source import resolve_tokenizer
from fjx.models.tokenizer import load_tokenizer
from fjx.pipeline.step_output import StepOutput
from fjx.sampling_params import SamplingParams

TEMPERATURES = {"greedy": 0.0, "sampled": 0.8}
PERCENTILES = (10.0, 90.0, 99.0)
NARROW = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}


class PhaseClock:
    """Processor seconds of this thread inside watched methods, since the last `take`."""

    def __init__(self) -> None:
        self._spent: Counter[str] = Counter()

    def watch(self, owner: Any, method: str, phase: str) -> None:
        """Count the time of ``owner.method`` as ``phase`` from now on."""
        call: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any) -> Any:
            begin = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self._spent[phase] += time.thread_time() - begin

        setattr(owner, method, timed)

    def take(self) -> Counter[str]:
        """What each phase took, and begin anew."""
        spent, self._spent = self._spent, Counter()
        return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="of a narrow model in place of --model's")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--warm-steps", type=int, default=50)
    parser.add_argument("--steps", type=int, default=300, help="measured for each setting [300]")
    parser.add_argument("--only", nargs="+", choices=TEMPERATURES, default=list(TEMPERATURES))
    parser.add_argument("--output", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = start(options, Path(folder))
    clock = PhaseClock()
    for owner, method, phase in (
        (engine, "step", "step"),
        (engine.scheduler, "schedule", "schedule"),
        (engine.replicas[0]._builder, "build", "build"),
        (engine.executor, "dispatch", "dispatch"),
        (engine, "_collect", "collect"),
        (StepOutput, "read_tokens", "read"),
    ):
        clock.watch(owner, method, phase)
    result = {
        "about": about_this_run(),
        "model": f"{options.layers} narrow layers" if options.layers else options.model,
        "dtype": str(engine.executor.programs.dtype),
        "requests": options.requests,
        "prompt_tokens": options.prompt_tokens,
        "steps": options.steps,
        "settings": {setting: measure(engine, clock, setting, options) for setting in options.only},
    }
    print(json.dumps(result, indent=2))
    write(options.output, result)


def start(options: argparse.Namespace, folder: Path) -> Engine:
    """An engine of the model, or of a narrow one that is written into the folder."""
    model = options.model
    if options.layers:
        vocabulary = load_tokenizer(resolve_tokenizer(model, None, None)).vocab_size
        config = NARROW | {"num_hidden_layers": options.layers, "vocab_size": vocabulary}
        (folder / "config.json").write_text(json.dumps(config))
        model = str(folder)
    context = options.prompt_tokens + 2 * options.warm_steps + options.steps + 32
    return start_engine(
        EngineConfig(
            model=model,
            tokenizer=options.model,
            load_random_weights=bool(options.layers),
            dtype=options.dtype,
            max_num_seqs=options.requests,
            max_model_len=context,
            max_num_batched_tokens=max(256, options.requests),
            kv_cache_tokens=options.requests * (context + 16),
            drafter="off",
            warmup=False,  # the warm steps compile the few programs that are needed
        )
    )


def measure(
    engine: Engine, clock: PhaseClock, setting: str, options: argparse.Namespace
) -> dict[str, float | None]:
    """Milliseconds of each phase over the measured steps."""
    source = random.Random(setting)
    vocabulary = range(engine.tokenizer.vocab_size)
    params = SamplingParams(temperature=TEMPERATURES[setting], max_tokens=None, ignore_eos=True)
    for i in range(options.requests):
        engine.add(str(i), list(random_tokens(options.prompt_tokens, source, vocabulary)), params)
    while any(request.num_output == 0 for request in engine.scheduler.running) or (
        engine.scheduler.num_waiting
    ):
        engine.step()
    for _ in range(options.warm_steps):
        engine.step()
    engine.executor.compiler.compile_background()
    engine.executor.compiler.wait_background()
    for _ in range(options.warm_steps):
        engine.step()
    compiles = engine.stats().compiles
    steps = []
    for _ in trange(options.steps, desc=setting, unit="step"):
        clock.take()
        progress = engine.step()
        assert len(progress) == options.requests, "not all requests were decoding"
        steps.append(host_seconds(clock.take()))
    assert engine.stats().compiles == compiles, "a measured step compiled a program"
    engine.abort_all()
    while engine.has_work:
        engine.step()
    figures: dict[str, float | None] = {}
    for phase in steps[0]:
        figures |= distribution(phase, [step[phase] for step in steps], PERCENTILES)
    return figures


def host_seconds(spent: Counter[str]) -> dict[str, float]:
    """The watched times as the host's phases, which add up to the first."""
    host = spent["step"] - spent["read"]
    phases = {phase: spent[phase] for phase in ("schedule", "build", "dispatch")}
    phases["collect"] = spent["collect"] - spent["read"]
    return {"host": host, **phases, "rest": host - sum(phases.values())}


if __name__ == "__main__":
    main()
