"""Options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fjx.cli.options import CommandParser, one_of
from fjx.config import UNKNOWN_KV_GIB, EngineConfig
from fjx.errors import UserError


def add_workload_options(parser: CommandParser, group: argparse._ArgumentGroup) -> None:
    """Add the options that say what a plan must be good for."""
    parser.add_flag(
        group,
        "--rows",
        type=positive,
        default=16,
        metavar="N",
        help="Rows of a microbatch, for which the slowest stage shall be fast. [16]",
    )
    parser.add_flag(
        group,
        "--kv-tokens",
        type=positive,
        metavar="N",
        help=f"Token slots of KV memory; by default what {UNKNOWN_KV_GIB:g} GiB hold.",
    )


def add_model_options(parser: CommandParser) -> None:
    """Add the options that say what a model's pieces cost."""
    group = parser.add_argument_group("model")
    parser.add_flag(
        group,
        "--model",
        metavar="TEXT",
        help="A local folder or .gguf file, a Hugging Face hub id, or the name of an embedded "
        f"model. [{EngineConfig.model}]",
    )
    add_hub_options(parser, group)
    parser.add_flag(
        group,
        "--dtype",
        **one_of("float32", "bfloat16"),
        help="Type of weights and KV pages; by default what the engine would choose.",
    )
    parser.add_flag(
        group,
        "--quantization",
        **one_of("int8", "fp8"),
        help="Store the blocks' matrices in eight bits an entry.",
    )
    parser.add_flag(
        group,
        "--granule-layers",
        type=positive,
        metavar="N",
        help="Consecutive layers in one granule; by default about an eighth of the model.",
    )
    parser.add_flag(
        group,
        "--profile",
        type=Path,
        metavar="FILE",
        help="Measured costs of the model's granules; without it they are estimated from its "
        "sizes.",
    )


def add_hub_options(parser: CommandParser, group: argparse._ArgumentGroup) -> None:
    """Add the options that say which of a hub's models is meant, and where it is kept."""
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


def add_machine_options(parser: CommandParser) -> None:
    """Add the options that say which devices there are."""
    group = parser.add_argument_group("machine")
    parser.add_flag(
        group,
        "--cluster",
        type=Path,
        metavar="FILE",
        help="Plan for the devices of this cluster file instead of this machine's.",
    )
    parser.add_flag(
        group,
        "--devices",
        type=positive,
        metavar="N",
        help="Plan as if this machine had so many devices.",
    )
    parser.add_flag(
        group,
        "--device-memory",
        type=_gibibytes,
        metavar="GIB",
        help="Plan as if so much memory were free on each device.",
    )


def add_output_options(parser: CommandParser, flag: str, drawn: str) -> None:
    """Add the options that say what becomes of a plan.

    Args:
        parser: of the command.
        flag: of the pictures.
        drawn: what they show.
    """
    group = parser.add_argument_group("output")
    parser.add_flag(
        group,
        flag,
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help=f"Draw {drawn} into this .svg or .png file; may be given several times.",
    )
    parser.add_flag(
        group,
        "--json",
        action="store_true",
        help="Print the plan as POST /v1/plan takes it, instead of the table.",
    )


def check_named(arguments: argparse.Namespace, meshes: Sequence[str]) -> None:
    """Check that there are the meshes, the model and the files that a plan is to be made of, before
    what takes seconds to import.

    Raises:
        UserError: one is not there or is wrong, or options contradict each other.
    """
    if arguments.cluster is not None and (arguments.devices or arguments.device_memory):
        raise UserError(
            "--cluster says all of the machine; leave out --devices and --device-memory"
        )
    from fjx.engine.names import check_meshes
    from fjx.models.loading.source import check_model_name
    from fjx.sharding.costs.profile import read_profile
    from fjx.sharding.topology.cluster_file import read_cluster

    check_meshes(meshes)
    if arguments.cluster is not None:
        read_cluster(arguments.cluster)
    if arguments.profile is not None:
        read_profile(arguments.profile)
    elif arguments.model is not None:
        check_model_name(arguments.model)


def check_here(model: str, cache_dir: Path | None) -> None:
    """Check that there is such a model and that programs can be kept, before what takes seconds to
    import.

    Raises:
        UserError: there is not, or they cannot.
    """
    from fjx.models.loading.source import check_model_name, program_cache

    program_cache(cache_dir)
    check_model_name(model)


def positive(word: str) -> int:
    """A number of an option, at least 1.

    Raises:
        ArgumentTypeError: it is none.
    """
    number = int(word) if word.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {word!r}")
    return number


def _gibibytes(word: str) -> int:
    try:
        size = int(float(word) * 2**30)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected GiB above 0, got {word!r}")
    return size
