"""Makes multiple-choice items out of real problems, always the same ones, as lm-eval reads them.

Two kinds, like two tasks that everyone runs: a question with four short answers (as in ARC-easy),
and a text with four endings (as in HellaSwag).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SEED = 20261201
CHOICES = 4
LONGEST_QUESTION = 300
LONGEST_BEGINNING = 180
"""Characters; longer ones only take longer."""
_TASK = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{text}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""

Item = dict[str, Any]


def write_tasks(prompts: Path, folder: Path, count: int) -> list[str]:
    """Write both tasks, ``count`` items each, and return their names.

    Args:
        prompts: folder with gsm8k_test_300.jsonl and gsm8k_train.jsonl.
        folder: receives the tasks' YAML and JSON lines.
        count: items of each task.
    """
    answers = answer_items(_read(prompts / "gsm8k_test_300.jsonl"))
    endings = ending_items(_read(prompts / "gsm8k_train.jsonl"))
    tasks = {
        "fjx_answers": (answers, r"Question: {{query}}\nAnswer:"),
        "fjx_endings": (endings, "{{query}}"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for task, (items, text) in tasks.items():
        file = folder / f"{task}.jsonl"
        chosen = [item for _, item in zip(range(count), items, strict=False)]
        if len(chosen) < count:
            raise SystemExit(f"only {len(chosen)} items of {task} instead of {count}")
        file.write_text("".join(json.dumps(item) + "\n" for item in chosen))
        yaml = _TASK.format(task=task, file=file, text=text)
        (folder / f"{task}.yaml").write_text(yaml)
    return list(tasks)


def answer_items(problems: Sequence[dict[str, str]]) -> Iterator[Item]:
    """Each problem with its number and three wrong ones."""
    rng = random.Random(SEED)
    for problem in problems:
        right = int(problem["answer"].rpartition("#### ")[2].replace(",", ""))
        wrong = [right + 1, right * 2, max(right // 2, 0), right + 10, right * 10, abs(right - 3)]
        wrong = sorted(set(wrong) - {right})
        if len(problem["question"]) > LONGEST_QUESTION or len(wrong) < CHOICES - 1:
            continue
        numbers = rng.sample(wrong, CHOICES - 1)
        yield _item(rng, problem["question"], str(right), map(str, numbers))


def ending_items(problems: Sequence[dict[str, str]]) -> Iterator[Item]:
    """Each problem without its last sentence, which is to be told from those of three others."""
    rng = random.Random(SEED)
    split = [re.split(r"(?<=[.!?])\s+", problem["question"].strip()) for problem in problems]
    split = [sentences for sentences in split if len(sentences) > 2]
    for sentences in split:
        query = " ".join(sentences[:-1])
        others = [other[-1] for other in rng.sample(split, CHOICES - 1)]
        if len(query) <= LONGEST_BEGINNING and len({sentences[-1], *others}) == CHOICES:
            yield _item(rng, query, sentences[-1], others)


def _item(rng: random.Random, query: str, right: str, wrong: Iterator[str] | list[str]) -> Item:
    choices = [right, *wrong]
    rng.shuffle(choices)
    return {"query": query, "choices": choices, "label": choices.index(right)}


def _read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
