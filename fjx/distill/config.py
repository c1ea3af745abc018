"""What `fjx distill` does: one frozen dataclass, from which its options are generated."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fjx.config import EngineConfig
from fjx.errors import UserError
from fjx.output_files import check_output_file, check_output_folder

_FREE = ("output", "work_dir", "cache_dir", "resume", "minutes", "epochs", "max_num_seqs")
"""What may change when a run is resumed."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a draft head is distilled from a target.

    Raises:
        UserError: a value is outside its range, or ``output`` cannot be written.
    """

    model: str = EngineConfig.model
    """The target: a local folder or .gguf file, a Hugging Face hub id, or the name of an embedded
    model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    cache_dir: Path | None = None
    """Where downloaded models and compiled programs are kept; by default ~/.cache/fjx
    ($FJX_CACHE)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the target's weights, and of the products in training. auto: bfloat16 where the
    processor multiplies it natively."""
    output: Path = Path("draft-head.safetensors")
    """The file to write; must not be there yet, except with resume."""
    work_dir: Path | None = None
    """Folder of what is made on the way: tokens, features, checkpoints, plots; by default beside
    the output, with .distill for .safetensors."""
    resume: bool = False
    """Go on where an earlier run with the same options was interrupted."""
    data: tuple[Path, ...] = ()
    """Prompts, a fifth of all: JSON lines with question, prompt, text or turns (the first). The
    others are built in."""
    tokens: int = 600_000
    """Tokens that the target generates."""
    max_tokens: int = 224
    """Most tokens of one output."""
    temperature: float = 0.8
    """Of every second output; the others are greedy."""
    max_num_seqs: int = EngineConfig.max_num_seqs
    """Most outputs generated at once."""
    vocabulary: int = 8192
    """Token ids that the head can draft, the most frequent ones."""
    window: int = 384
    """Positions of one row of a training batch; outputs are packed into it, and prompts cut from
    the left to fit."""
    windows: int = 6
    """Rows of a training batch."""
    epochs: float = 4.0
    """Passes over the generated tokens."""
    minutes: float = 100.0
    """Longest training, in minutes; the learning rate has fallen by then."""
    draft_positions: int = 4
    """Positions that are drafted in training from the head's own estimates, and measured."""
    unroll_every: int = 4
    """One of so many batches is trained on all draft_positions, the others, for speed, on the first
    alone."""
    learning_rate: float = 1e-2
    """Highest learning rate of AdamW, relative to the root mean square of each tensor."""
    hidden_weight: float = 1.0
    """Weight of the loss on the estimated residual stream, beside the cross-entropy's 1."""
    seed: int = 0
    """Of prompts, sampling, initial weights and the order of batches."""

    def __post_init__(self) -> None:
        for name in (
            *("tokens", "max_tokens", "max_num_seqs", "vocabulary", "windows"),
            *("draft_positions", "unroll_every"),
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("epochs", "minutes", "learning_rate", "temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        if self.hidden_weight < 0:
            raise UserError(f"hidden_weight must be at least 0, got {self.hidden_weight}")
        if self.window < self.max_tokens + self.draft_positions + 2:
            raise UserError(
                f"window ({self.window}) must hold an output of max_tokens ({self.max_tokens}) and "
                f"{self.draft_positions + 2} more"
            )
        if self.output.suffix != ".safetensors":
            raise UserError(f"output: expected a .safetensors file, got {self.output}")
        check_output_file("output", self.output)
        check_output_folder("work_dir", self.work_folder)

    @property
    def work_folder(self) -> Path:
        """Where everything on the way to the output is kept."""
        return self.work_dir or self.output.with_suffix(".distill")

    def as_dict(self) -> dict[str, Any]:
        """All fields as values that JSON can hold."""
        return json.loads(json.dumps(asdict(self), default=str))  # type: ignore[no-any-return]


def check_new_output(config: DistillConfig) -> None:
    """Check that no head that took long to train is written over.

    Raises:
        UserError: ``output`` is there and ``resume`` is off.
    """
    if config.output.exists() and not config.resume:
        raise UserError(
            f"output: {config.output} exists already; name another file, remove it, or use "
            "--resume to write it anew from what an earlier run has left"
        )


def open_work_folder(config: DistillConfig) -> Path:
    """Make the work folder, or find it as an earlier run with the same options left it.

    Raises:
        UserError: it or the output is in use and ``resume`` is off, or its options were others, or
            it cannot be written.
    """
    folder = config.work_folder
    record = folder / "options.json"
    wanted = {name: value for name, value in config.as_dict().items() if name not in _FREE}
    try:
        if not record.exists():
            check_new_output(config)
            if folder.exists() and any(folder.iterdir()):
                raise UserError(f"{folder}: not empty, and not of fjx distill; name another")
            folder.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8")
            return folder
        if not config.resume:
            raise UserError(f"{folder}: holds an earlier run; use --resume, or remove it")
        found = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be used: {error}") from error
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(
                f"{folder}: was begun with {name} {found.get(name)!r}, not {value!r}; use the "
                "same options, or another --work-dir"
            )
    return folder
