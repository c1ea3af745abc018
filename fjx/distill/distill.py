"""From a target's name to the file of its draft head."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fjx.distill.acceptance import Acceptance
from fjx.distill.config import DistillConfig, open_work_folder
from fjx.distill.features import Example, read_examples
from fjx.distill.generate import generate
from fjx.distill.initial import initial_tensors
from fjx.distill.lens_maps import fit_maps
from fjx.distill.target import DistillTarget, open_target
from fjx.distill.train import State, Trainer, read_log
from fjx.distill.unrolled import UnrolledHead
from fjx.distill.windows import head_vocabulary
from fjx.errors import UserError
from fjx.models.draft_head import DraftHead
from fjx.models.loading.draft_head_file import DraftHeadConfig, save_draft_head
from fjx.plots.training import training_svg


def distill(
    config: DistillConfig, command: Sequence[str] = (), progress: bool = True
) -> dict[str, Acceptance]:
    """Train a draft head and write it to ``config.output``.

    Four steps, of which the first three are kept in ``config.work_folder`` so that `resume` goes on
    from there: outputs of the target, its residual streams, the training, the file, to which maps
    of a logit lens are added where they help. ``training.svg`` in that folder shows
    the training.

    Args:
        config: what and how.
        command: the command line, for the record in the file.
        progress: show progress bars on stderr.

    Returns:
        The acceptance of drafts of held-out prompts, by group, "greedy" among them.

    Raises:
        UserError: the model or a file of prompts cannot be had, a folder cannot be used, or there
            is too little to train on.
    """
    folder = open_work_folder(config)
    generate(config, folder, progress)
    load = cache(lambda: open_target(config, progress))
    examples = read_examples(folder, load, progress)
    target = load()
    training = [each for each in examples if not each.sample.held_out]
    if not training:
        raise UserError("there are no outputs to train on; generate more --tokens")
    token_ids = head_vocabulary(training, config.vocabulary, target.config.vocab_size)
    head = DraftHead(target.config, token_ids)
    unrolled = UnrolledHead(
        head,
        target,
        length=config.window,
        hidden_weight=config.hidden_weight,
    )
    index_of = np.full(target.config.vocab_size, -1, np.int32)
    index_of[token_ids] = np.arange(len(token_ids))
    trainer = Trainer(config, unrolled, unrolled.frozen(target), examples, index_of, folder)
    first = initial_tensors(head, target, [each.sample for each in training])
    state = trainer.train(trainer.start(first), progress)
    groups = trainer.acceptance(state.tensors)
    greedy = groups["greedy"].shares[0] if "greedy" in groups else 0.0
    maps, accuracies = fit_maps(target, head, [each.sample for each in examples], greedy)
    record = _record(config, command, examples, trainer, state, groups)
    record["lens"] = {str(layers): accuracy._asdict() for layers, accuracy in accuracies.items()}
    _write(config, target, head, state, maps, record)
    _draw(config, folder)
    return groups


def _record(
    config: DistillConfig,
    command: Sequence[str],
    examples: Sequence[Example],
    trainer: Trainer,
    state: State,
    groups: Mapping[str, Acceptance],
) -> dict[str, Any]:
    kinds = Counter(example.sample.kind for example in examples)
    return {
        "command": " ".join(["fjx", *command]) if command else None,
        "options": config.as_dict(),
        "data": {
            "outputs": len(examples),
            "held_out": sum(example.sample.held_out for example in examples),
            "output_tokens": sum(example.sample.output_length for example in examples),
            "prompts": dict(sorted(kinds.items())),
            "covered_by_vocabulary": round(trainer.coverage(), 4),
        },
        "steps": state.step,
        "minutes": round(state.seconds / 60, 1),
        "acceptance": {name: found.as_dict() for name, found in groups.items()},
    }


def _write(
    config: DistillConfig,
    target: DistillTarget,
    head: DraftHead,
    state: State,
    maps: Mapping[int, np.ndarray],
    record: dict[str, Any],
) -> None:
    described = DraftHeadConfig(
        target=config.model,
        fingerprint=target.fingerprint,
        config=target.config,
        vocabulary_size=len(head.token_ids),
        training=record,
    )
    tensors = {name: np.asarray(values) for name, values in state.tensors.items()}
    save_draft_head(config.output, described, head.token_ids, tensors, maps)
    (config.work_folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def _draw(config: DistillConfig, folder: Path) -> None:
    svg = training_svg(f"Draft head for {config.model}", read_log(folder / "log.jsonl"))
    (folder / "training.svg").write_text(svg, "utf-8")
