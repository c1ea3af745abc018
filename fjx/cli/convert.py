"""``fjx convert``: any model to a checkpoint folder that loads by itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fjx.cli.options import CommandParser, one_of
from fjx.cli.shared_options import add_hub_options
from fjx.output_files import check_output_folder

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
        **one_of("float32", "bfloat16"),
        help="Type of the stored weights; by default as they come (quantized ones as float32).",
    )
    add_hub_options(parser, group)


def run(arguments: argparse.Namespace) -> int:
    """Convert a model and its tokenizer.

    Raises:
        UserError: the model cannot be read, or the folder is in use or cannot be written.
    """
    from fjx.models.loading.source import check_model_name, resolve

    destination: Path = arguments.destination
    check_output_folder("DST", destination)
    check_model_name(arguments.source)

    import ml_dtypes
    import numpy as np

    from fjx.models.loading.convert import convert
    from fjx.models.loading.orbax import check_new

    check_new(destination)
    types = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
    source = resolve(arguments.source, arguments.revision, arguments.cache_dir)
    convert(source, destination, types.get(arguments.dtype))
    print(f"wrote {destination}; use it with --model {destination}", file=sys.stderr)
    return 0
