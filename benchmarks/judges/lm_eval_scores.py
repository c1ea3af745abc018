"""Compares log-likelihoods that lm-eval gets from ``fjx serve`` with those from Transformers.

    python benchmarks/judges/lm_eval_scores.py --output FILE.json

Both compute SmolLM2-135M-Instruct in float32 from the same GGUF file. fjx is asked through
lm-eval's ``local-completions`` (echo with logprobs) three times: with token ids, with text, and
with its own tokenizer's endpoints. Every answer that is chosen must be the same one, and every
log-likelihood of an answer (the sum over its tokens) within 1e-3.

lm-eval, PyTorch and Transformers land in a virtual environment in the cache folder. The items are
made of real problems, which --prompts names. Ends with status 0 if all agrees.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_items import write_tasks
from server import Server, command_line, end_servers_on_sigterm
from source import virtual_environment

from fjx.bench.report import environment
from fjx.models.loading.source import cache_root, resolve

BENCHMARKS = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m"
REQUIREMENTS = (
    "torch==2.13.0", "lm-eval[api]==0.4.13", "transformers==5.24.0", "accelerate", "gguf",
)  # fmt: skip
TOLERANCE = 1e-3
SERVER_OPTIONS = (
    "--model", MODEL, "--dtype", "float32", "--max-model-len", "1024",
    "--kv-cache-memory", "0.3", "--max-num-seqs", "8", "--drafter", "off",
)  # fmt: skip
ASKED = {
    "token ids": "tokenizer_backend=huggingface,tokenized_requests=True",
    "text": "tokenizer_backend=huggingface,tokenized_requests=False",
    "remote tokenizer": "tokenizer_backend=remote,tokenized_requests=True",
}

Answers = dict[tuple[str, int], list[float]]
"""The log-likelihoods of an item's choices, by task and item."""


def main() -> int:
    """Ask both and compare."""
    arguments = parse_arguments()
    end_servers_on_sigterm()
    if not arguments.prompts.is_dir():
        raise SystemExit(f"{arguments.prompts} is missing; --prompts names the folder of problems")
    cache = (arguments.cache or cache_root(None) / "judges").absolute()
    python = arguments.lm_eval_python or virtual_environment(cache / "lm-eval", REQUIREMENTS)
    model = cache / f"{MODEL}-hf"
    if not (model / "config.json").exists():
        export = [python, BENCHMARKS / "export_hf.py", resolve(MODEL).path, model]
        subprocess.run([str(part) for part in export], check=True)
    tasks = write_tasks(arguments.prompts, cache / "lm-eval-tasks", arguments.items)

    def ask(name: str, *options: str) -> tuple[Answers, dict[str, Any]]:
        folder = cache / "lm-eval-results" / name.replace(" ", "-")
        run_lm_eval(python, tasks, cache / "lm-eval-tasks", folder, options)
        return read_answers(folder, tasks)

    options = ("--model", "hf", "--batch_size", "8", "--device", "cpu")
    options += ("--model_args", f"pretrained={model},dtype=float32")
    if arguments.known:
        known, accuracy = read_answers(cache / "lm-eval-results" / "transformers", tasks)
    else:
        known, accuracy = ask("transformers", *options)
    compared = {}
    server = Server(sys.executable, SERVER_OPTIONS)
    try:
        for name in arguments.ask:
            model_arguments = (
                f"model={MODEL},base_url={server.url}/v1/completions,num_concurrent=4,"
                f"max_length=1024,{ASKED[name]}"
            )
            if "remote" not in name:
                model_arguments += f",tokenizer={model}"
            options = ("--model", "local-completions", "--model_args", model_arguments)
            answers, its_accuracy = ask(name, *options)
            compared[name] = {**compare(known, answers), "accuracy": its_accuracy}
            print(f"{name}: {json.dumps(compared[name])}", flush=True)
    finally:
        server.stop()
    result = {
        **environment([]),
        "command": command_line(),
        "judges": packages(python),
        "items": arguments.items,
        "tasks": tasks,
        "tolerance": TOLERANCE,
        "transformers": {"accuracy": accuracy},
        "fjx": compared,
    }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(entry["agrees"] for entry in compared.values()) else 1


def parse_arguments() -> argparse.Namespace:
    """What the user wants."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=200, help="items of each task [200]")
    parser.add_argument("--ask", nargs="+", choices=ASKED, default=list(ASKED), help="ways [all]")
    parser.add_argument(
        "--known",
        action="store_true",
        help="keep what Transformers said in the last run, which had these items, or more",
    )
    parser.add_argument("--cache", type=Path, help="folder for what is downloaded and made")
    parser.add_argument("--lm-eval-python", type=Path, help="a Python that has lm-eval[api]")
    parser.add_argument(
        "--prompts",
        type=Path,
        default=BENCHMARKS.parents[1] / "shared" / "data" / "prompts",
        help="folder with gsm8k_test_300.jsonl and gsm8k_train.jsonl",
    )
    parser.add_argument("--output", type=Path, help="write the result to this file, as JSON")
    return parser.parse_args()


def run_lm_eval(
    python: Path, tasks: Sequence[str], task_folder: Path, folder: Path, options: Sequence[str]
) -> None:
    """Run lm-eval and leave its samples below ``folder``."""
    for old in folder.glob("**/*.json*"):
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "lm_eval", "run", "--tasks", ",".join(tasks), *options]
    command += ["--include_path", str(task_folder), "--output_path", str(folder), "--log_samples"]
    with (folder / "log.txt").open("w") as log:
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
        done = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **offline}
        )
    if done.returncode != 0:
        tail = (folder / "log.txt").read_text().splitlines()[-15:]
        raise SystemExit("\n".join(["lm-eval failed:", *tail]))


def read_answers(folder: Path, tasks: Sequence[str]) -> tuple[Answers, dict[str, Any]]:
    """What lm-eval logged: each choice's log-likelihood, and each task's accuracy."""
    answers: Answers = {}
    accuracy: dict[str, Any] = {}
    for task in tasks:
        [file] = folder.glob(f"**/samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        for sample in samples:
            scores = [float(score) for score, _ in sample["filtered_resps"]]
            answers[task, sample["doc_id"]] = scores
        accuracy[task] = sum(sample["acc"] for sample in samples) / len(samples)
    return answers, accuracy


def compare(known: Mapping[tuple[str, int], list[float]], answers: Answers) -> dict[str, Any]:
    """How far the answers are from the known ones of the same items."""
    known = {key: known[key] for key in answers}
    differences = [
        abs(mine - theirs)
        for key, scores in known.items()
        for theirs, mine in zip(scores, answers[key], strict=True)
    ]
    same = sum(best(scores) == best(answers[key]) for key, scores in known.items())
    return {
        "items": len(known),
        "same_choice": same,
        "log_likelihoods": len(differences),
        "largest_difference": max(differences),
        "within_tolerance": sum(difference <= TOLERANCE for difference in differences),
        "agrees": same == len(known) and max(differences) <= TOLERANCE,
    }


def best(scores: Sequence[float]) -> int:
    """The choice that a task takes."""
    return max(range(len(scores)), key=scores.__getitem__)


def packages(python: Path) -> dict[str, str]:
    """The versions of what judges."""
    script = "import sys, json; from importlib.metadata import version\n"
    script += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    command = [str(python), "-c", script, "lm_eval", "torch", "transformers"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = json.loads(output)
    return found


if __name__ == "__main__":
    sys.exit(main())
