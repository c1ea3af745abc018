"""``fjx distill``: train a draft head from a model's own outputs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fjx.cli.options import CommandParser, Section, resolve
from fjx.distill.config import DistillConfig

if TYPE_CHECKING:
    from fjx.distill.acceptance import Acceptance

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
    parser.epilog = EXAMPLES
    parser.add_section(DISTILL)


def run(arguments: argparse.Namespace) -> int:
    """Train, write and print how often drafts are right.

    Raises:
        UserError: the model or a file cannot be read or written, or there is too little to train
            on.
    """
    config = resolve(arguments, DISTILL)
    from fjx.distill.distill import distill

    groups = distill(config, arguments.command_line)
    print(acceptance_table(groups))
    print(
        f"wrote {config.output}; {config.work_folder / 'training.svg'} shows the training",
        file=sys.stderr,
    )
    return 0


def acceptance_table(groups: Mapping[str, Acceptance]) -> str:
    """How often drafts of held-out prompts are right, as text."""
    from fjx.sharding.table import aligned

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
