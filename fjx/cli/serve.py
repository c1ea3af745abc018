"""``fjx serve``: the OpenAI-compatible server."""

from __future__ import annotations

import argparse

from fjx.cli.options import CommandParser, read_config, resolve
from fjx.cli.sections import ENGINE, FILE_SECTIONS, SERVER

EXAMPLES = """examples:
  fjx serve smollm2-135m --port 8000
  fjx serve Qwen/Qwen3-8B --mesh tensor-2 --served-model-name qwen3 default
  fjx serve --config fjx.toml --max-num-seqs 16
"""


def add_options(parser: CommandParser) -> None:
    """Add the options of this command."""
    parser.usage = "%(prog)s [MODEL] [options]"
    parser.positional = "engine.model"
    parser.epilog = EXAMPLES
    parser.add_section(SERVER)
    parser.add_section(ENGINE)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it.

    Raises:
        UserError: the options or the model cannot be used.
    """
    file = read_config(arguments, FILE_SECTIONS)
    engine = resolve(arguments, ENGINE, file)
    server = resolve(arguments, SERVER, file)
    # What takes seconds to import would tell the same later.
    from fjx.engine.names import check_names

    check_names(engine)

    from fjx.serving.run import serve

    serve(engine, server)
    return 0
