"""``fjx distill``: train a draft head from a model's own outputs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fjx.cli.options import CommandParser, Section, resolve
from fjx.cli.shared_options import check_here
from fjx.distill.config import DistillConfig, check_new_output
from fjx.distill.prompts import read_texts
from fjx.errors import UserError

if TYPE_CHECKING:
    from fjx.distill.acceptance import Acceptance

STDIN = "-"
"""The name of a file that can be read only once."""

EXAMPLES = """examples:
  fjx distill --model smollm2-135m --output head.safetensors
  fjx distill --model smollm2-135m --output head.safetensors --resume
  fjx distill --model smollm2-135m --output head.safetensors --data questions.jsonl --minutes 40
"""

DISTILL = Section(
    "distill",
    DistillConfig,
    {
        "model": ("model", "revision", "cache_dir", "dtype"),
        "output": ("output", "work_dir", "resume"),
        "what the target generates": (
            "data",
            "tokens",
            "max_tokens",
            "temperature",
            "max_num_seqs",
        ),
        "training": (
            "vocabulary",
            "minutes",
            "epochs",
            "window",
            "windows",
            "draft_positions",
            "unroll_every",
            "learning_rate",
            "hidden_weight",
            "seed",
        ),
    },
    in_file=False,
)


def add_options(parser: CommandParser) -> None:
    """Add the options of this command."""
    parser.usage = "%(prog)s --model MODEL --output FILE [options]"
    parser.epilog = EXAMPLES
    parser.add_section(DISTILL)


def run(arguments: argparse.Namespace) -> int:
    """Train, write and print how often drafts are right.

    Raises:
        UserError: the model or a file cannot be read or written, or there is too little to train
            on.
    """
    missing = [f"--{name}" for name in ("model", "output") if f"distill.{name}" not in arguments]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be given: the model to learn from and the .safetensors "
            "file to write. It takes long: the model first generates --tokens tokens, then the "
            "head is trained for up to --minutes minutes"
        )
    config = resolve(arguments, DISTILL)
    check_new_output(config)
    check_here(config.model, config.cache_dir)
    for path in config.data:
        if str(path) != STDIN:
            read_texts(path)
    print(what_it_does(config), file=sys.stderr)

    from fjx.distill.distill import distill

    groups = distill(config, arguments.command_line)
    print(acceptance_table(groups))
    print(
        f"wrote {config.output}; {config.work_folder / 'training.svg'} shows the training",
        file=sys.stderr,
    )
    return 0


def what_it_does(config: DistillConfig) -> str:
    """What is about to happen, how long it may take and where it writes, in a sentence."""
    return (
        f"distilling a draft head for {config.model}: {config.tokens:,} tokens are generated and "
        f"read again, then it is trained for up to {config.minutes:g} minutes; "
        f"{config.work_folder} keeps what is made on the way (--resume goes on after an "
        f"interruption), {config.output} will be the head"
    )


def acceptance_table(groups: Mapping[str, Acceptance]) -> str:
    """How often drafts of held-out prompts are right, as text."""
    from fjx.sharding.costs.table import aligned

    positions = max(len(found.shares) for found in groups.values())
    rows = [
        ("held-out prompts", "drafts", *(f"token {n + 1}" for n in range(positions)), "accepted")
    ]
    for name, found in groups.items():
        shares = (f"{share:.3f}" for share in found.shares)
        rows.append((name, str(int(found.reached[0])), *shares, f"{found.mean_length:.2f}"))
    title = (
        "How often each token of a draft is the target's own, where those before it are; and "
        "tokens accepted of a draft"
    )
    return "\n".join([title, *aligned(rows, left=1)])
