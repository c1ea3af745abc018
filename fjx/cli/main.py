"""The ``fjx`` command: its subcommands, and how their errors end."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise

from fjx.cli import bench, convert, distill, generate, place, plan, profile, serve
from fjx.cli.foreign import command_hint, meaning, mesh_of_degrees
from fjx.cli.options import CommandParser
from fjx.errors import UserError

EXIT_USER_ERROR = 2
_LONG_WORD = re.compile(r"(\S{100})\S{200,}(\S{40})")
"""A name that fills the screen says no more than its ends."""
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    name: str
    summary: str
    add_options: Callable[[CommandParser], None]
    run: Callable[[argparse.Namespace], int]
    config_file: bool = True
    """Whether ``--config`` gives the options of the engine."""


COMMANDS = (
    Command("generate", "Complete prompts in this process.", generate.add_options, generate.run),
    Command("serve", "Serve a model with the OpenAI API.", serve.add_options, serve.run),
    Command(
        "convert",
        "Convert a model to a checkpoint that loads by itself.",
        convert.add_options,
        convert.run,
        config_file=False,
    ),
    Command(
        "plan",
        "Show how a model would be cut into stages, without loading it.",
        plan.add_options,
        plan.run,
        config_file=False,
    ),
    Command(
        "place",
        "Choose devices of a cluster for a model's stages.",
        place.add_options,
        place.run,
        config_file=False,
    ),
    Command(
        "profile",
        "Measure what a model's pieces cost on this machine.",
        profile.add_options,
        profile.run,
        config_file=False,
    ),
    Command(
        "distill",
        "Train a draft head from a model's own outputs.",
        distill.add_options,
        distill.run,
        config_file=False,
    ),
)

BENCHMARKS = (
    Command(
        "throughput",
        "All prompts at once, in this process: tokens per second.",
        bench.add_throughput_options,
        bench.run_throughput,
    ),
    Command(
        "latency",
        "One batch again and again, in this process: seconds per batch.",
        bench.add_latency_options,
        bench.run_latency,
    ),
    Command(
        "serve",
        "Load on any OpenAI-compatible server: latencies and goodput.",
        bench.add_load_options,
        bench.run_load,
        config_file=False,
    ),
)


def build_parser() -> CommandParser:
    """The parser of the whole command line; ``run`` and ``parser`` of its result are the choice."""
    parser = CommandParser(prog="fjx", description="Serve large language models with JAX.")
    commands = parser.add_commands("commands", "COMMAND")
    for command in COMMANDS:
        _add_command(commands, command)
    summary = "Measure throughput and latency."
    benchmarks = commands.add_parser("bench", help=summary, description=summary)
    kinds = benchmarks.add_commands("benchmarks", "BENCHMARK")
    for command in BENCHMARKS:
        _add_command(kinds, command)
    benchmarks.add_general_options()
    parser.add_flag(
        parser.add_general_options(),
        "--version",
        action="version",
        version=f"fjx {metadata.version('fjx')}",
        help="Show the version and exit.",
    )
    return parser


def _add_command(commands: argparse._SubParsersAction[CommandParser], command: Command) -> None:
    parser = commands.add_parser(command.name, help=command.summary, description=command.summary)
    parser.usage = "%(prog)s [options]"
    command.add_options(parser)
    parser.add_general_options(command.config_file)
    parser.set_defaults(run=command.run)


def _run(argv: Sequence[str]) -> int:
    whole = build_parser()
    parser, words = _command_of(whole, argv)
    if parser.commands and not words:
        parser.print_help()
        return 0
    if not parser.commands:
        _refuse_foreign(words, parser)
    arguments, unknown = whole.parse_known_args(argv)
    if unknown:
        parser.take_rest(arguments, unknown)
    arguments.command_line = list(argv)
    code: int = arguments.run(arguments)
    return code


def _command_of(parser: CommandParser, argv: Sequence[str]) -> tuple[CommandParser, Sequence[str]]:
    """The parser of the command that the first words name, and the other words.

    Raises:
        UserError: there is no such command.
    """
    for index, word in enumerate(argv):
        if word in parser.commands:
            parser = parser.commands[word]
        elif parser.commands and not word.startswith("-"):
            hint = command_hint(word, list(parser.commands))
            known = ", ".join(parser.commands)
            raise UserError(f"unknown command {word!r}: {hint or f'expected one of {known}'}")
        else:
            return parser, argv[index:]
    return parser, ()


def _refuse_foreign(words: Sequence[str], parser: CommandParser) -> None:
    """Say what to use instead of another server's option, before anything else is complained of.

    Raises:
        UserError: there is such an option.
    """
    for word, following in pairwise((*words, None)):
        if word is None or word == "--":
            return
        flag, equals, value = word.partition("=")
        if not flag.startswith("-") or flag in parser.option_strings:
            continue
        hint = meaning(flag, value if equals else following)
        if hint is not None and "--mesh" in hint:
            hint = mesh_of_degrees(words) or hint
        if hint is not None:
            raise UserError(f"unknown argument {flag}: {hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: done in part (the messages say what failed), or an unexpected error, which keeps
    its traceback. 2: an error that the user can mend, in one line on stderr. 130: Ctrl-C.
    141: nobody reads the output any more.
    """
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # here a closed pipe can still be caught; at exit it cannot
    except UserError as error:
        line = " ".join(str(error).split())
        line = _LONG_WORD.sub(r"\1...\2", line)
        print("fjx: error:", line, file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
