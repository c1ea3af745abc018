"""Speculation against plain decoding, token by token, on real prompts.

    python benchmarks/same_tokens.py --output FILE.json

For each number of stages and each temperature the prompts are served plainly, and then, by the same
engine, with drafters, policies, pruning and frontiers in several combinations. Tokens that differ
are counted; there should be none.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from prompts import sample_prompts
from report import about_this_run, write
from speculation import DATA, encode_chat
from tqdm import tqdm
from variants import Lineup, Variant

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.engine.start import start_engine
from fjx.sampling_params import SamplingParams
from fjx.speculation.policy.lengths import ConfidenceTrim, Faser, Fixed, MarginalGain, PerBatch

VARIANTS = {
    "ngram, fixed:5": Variant(Fixed(5), head=False),
    "head, batch": Variant(PerBatch(), lookup=False),
    "ngram+head, faser, pruned": Variant(Faser(), prunes=True, always=True),
    "ngram+head, confidence, 3 frontiers": Variant(ConfidenceTrim(), frontiers=3, always=True),
    "ngram+head, marginal": Variant(MarginalGain(), frontiers=4),
    "head, marginal, pruned": Variant(MarginalGain(), lookup=False, prunes=True, always=True),
}
TOP_P = 0.9
"""Where tokens are sampled."""


def main() -> None:
    """Compare and print."""
    options = parse_options()
    result: dict[str, Any] = {
        "about": about_this_run(),
        "model": options.model,
        "prompts": options.count,
        "top_p": TOP_P,
        "stages": {},
    }
    wrong = 0
    for stages in options.stages:
        with tempfile.TemporaryDirectory() as folder:
            engine = start(options.model, mesh_file(Path(folder), stages))
        compared = compare(engine, options)
        result["stages"][stages] = compared
        wrong += sum(v["wrong_tokens"] for of in compared.values() for v in of.values())
        write(options.output, result)
        engine.plans.close("the end")
        del engine
    print(json.dumps(result["stages"], indent=2))
    sys.exit(1 if wrong else 0)


def start(model: str, mesh: str) -> Engine:
    """An engine that can prune."""
    config = EngineConfig(
        model=model, mesh=mesh, max_num_seqs=16, max_model_len=1024, pruning="auto", seed=0
    )
    return start_engine(config)


def mesh_file(folder: Path, stages: int) -> str:
    """A mesh file with so many stages and one microbatch: several would not be pruned."""
    path = folder / f"{stages}-stages.toml"
    path.write_text("microbatches = 1\n" + "\n[[stage]]\ndevices = 1\n" * stages)
    return str(path)


def compare(engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """Count the tokens that differ, by temperature and variant."""
    texts = sample_prompts(options.prompts, options.count, options.seed)
    prompts = [encode_chat(engine, text) for text in texts]
    lineup, found = Lineup(engine, VARIANTS), {}
    for temperature in options.temperatures:
        sampling = {"top_p": TOP_P} if temperature else {}
        params = [
            SamplingParams(
                temperature=temperature, seed=i, max_tokens=options.max_tokens, **sampling
            )
            for i in range(len(prompts))
        ]
        with lineup.read_along():
            expected, _ = serve(engine, prompts, params, f"plain at {temperature:g}")
        engine.executor.compiler.wait_background()  # begun in the first steps
        of_temperature = {}
        for name in VARIANTS:
            with lineup.use(name):
                got, figures = serve(engine, prompts, params, f"{name} at {temperature:g}")
            pairs = (
                pair for each in zip(got, expected, strict=True) for pair in zip_longest(*each)
            )
            of_temperature[name] = {
                "tokens": sum(map(len, expected)),
                "wrong_tokens": sum(a != b for a, b in pairs),
            } | figures
        found[f"{temperature:g}"] = of_temperature
    return found


def serve(
    engine: Engine, prompts: list[list[int]], params: list[SamplingParams], name: str
) -> tuple[list[list[int]], dict[str, int]]:
    """The output tokens of all prompts, served side by side, and what was drafted."""
    tokens: list[list[int]] = [[] for _ in prompts]
    drafted = accepted = pruned = 0
    for i, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
        engine.add(str(i), prompt, each)
    with tqdm(total=len(prompts), desc=name, unit="prompt", leave=False) as bar:
        while engine.has_work:
            for progress in engine.step():
                tokens[int(progress.request.id)] += progress.token_ids
                if progress.finish_reason is not None:
                    bar.update()
                    drafted += progress.request.drafted_tokens
                    accepted += progress.request.accepted_tokens
                    pruned += progress.request.pruned_tokens
    engine.check_idle()
    return tokens, {"drafted": drafted, "accepted": accepted, "pruned": pruned}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("--model", default="smollm2-135m")
    add("--stages", type=int, nargs="+", default=[1, 2, 4])
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    add("--count", type=int, default=200, help="prompts [200]")
    add("--max-tokens", type=int, default=48)
    add("--prompts", type=Path, default=DATA / "prompts")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="also write the result to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
