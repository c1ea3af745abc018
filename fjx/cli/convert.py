"""``fjx convert``: any model to a checkpoint folder that loads by itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fjx.cli.options import CommandParser
from fjx.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from fjx.models.config import ModelConfig
    from fjx.models.loading.source import ModelSource

EXAMPLES = """examples:
  fjx convert smollm2-135m checkpoints/smollm2
  fjx convert model.gguf checkpoints/model --dtype bfloat16
"""


def add_options(parser: CommandParser) -> None:
    """Add the options of this command."""
    parser.usage = "%(prog)s SRC DST [options]"
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("model")
    group.add_argument(
        "source",
        metavar="SRC",
        help="A local folder or .gguf file, a Hugging Face hub id, or the name of an embedded "
        "model.",
    )
    group.add_argument(
        "destination", type=Path, metavar="DST", help="The folder to write; new or empty."
    )
    parser.add_flag(
        group,
        "--dtype",
        choices=("float32", "bfloat16"),
        help="Type of the stored weights; by default as they come (quantized ones as float32).",
    )
    parser.add_flag(
        group, "--revision", metavar="TEXT", help="Branch, tag or commit of a hub model."
    )
    parser.add_flag(
        group,
        "--cache-dir",
        type=Path,
        metavar="PATH",
        help="Where downloaded models are kept; by default ~/.cache/fjx ($FJX_CACHE).",
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert a model and its tokenizer.

    Raises:
        UserError: the model cannot be read, or the folder is in use or cannot be written.
    """
    from fjx.models.loading.load import load_model_config
    from fjx.models.loading.orbax import save_checkpoint
    from fjx.models.loading.source import resolve
    from fjx.models.tokenizer import load_tokenizer

    source = resolve(arguments.source, arguments.revision, arguments.cache_dir)
    config = load_model_config(source)
    tokenizer = load_tokenizer(source)
    destination: Path = arguments.destination
    save_checkpoint(destination, config, _tensors(source, config, arguments.dtype))
    try:
        tokenizer.save(destination)
    except OSError as error:
        raise UserError(f"{destination}: the tokenizer cannot be written: {error}") from error
    print(f"wrote {destination}; use it with --model {destination}", file=sys.stderr)
    return 0


def _tensors(
    source: ModelSource, config: ModelConfig, dtype: str | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The model's tensors in the wanted type, with a progress bar in bytes of the files."""
    import ml_dtypes
    import numpy as np
    from tqdm import tqdm

    from fjx.models.loading.load import open_checkpoint

    wanted = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
    checkpoint = open_checkpoint(source, config)
    total = sum(checkpoint.nbytes.values())
    with tqdm(desc=f"Converting {source.name}", total=total, unit="B", unit_scale=True) as bar:
        for name, tensor in checkpoint:
            yield name, tensor if dtype is None else tensor.astype(wanted[dtype], copy=False)
            bar.update(checkpoint.nbytes.get(name, 0))
