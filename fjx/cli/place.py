"""``fjx place``: which devices of a cluster a model's stages would get."""

from __future__ import annotations

import argparse

from fjx.cli.options import CommandParser, one_of
from fjx.cli.pictures import check_picture, write_picture
from fjx.cli.shared_options import (
    add_machine_options,
    add_model_options,
    add_output_options,
    add_workload_options,
    check_named,
    positive,
)
from fjx.errors import UserError

SCORERS = ("fragment", "flexpipe")
EXAMPLES = """examples:
  fjx place --cluster cluster.toml --model Qwen/Qwen3-8B --stages 4
  fjx place --cluster cluster.toml --profile profile.json --stages 2 4 8 --tolerance 0.1
  fjx place --cluster cluster.toml --mesh my.toml --draw placement.svg
"""


def add_options(parser: CommandParser) -> None:
    """Add the options of this command."""
    parser.epilog = EXAMPLES
    group = parser.add_argument_group("stages")
    parser.add_flag(
        group,
        "--stages",
        type=positive,
        nargs="+",
        metavar="N",
        help="Numbers of stages to choose from, cut by the planner for devices alike; by default "
        "1, 2, 4 and so on, as far as the model has granules.",
    )
    parser.add_flag(
        group,
        "--tensor",
        type=positive,
        metavar="N",
        help="Devices of each stage, on one node. [1]",
    )
    parser.add_flag(
        group,
        "--mesh",
        metavar="TEXT",
        help="Take stages, tensor degrees, layers and replicas from this mesh, and choose other "
        "devices than it says.",
    )
    add_workload_options(parser, group)
    _add_placement_options(parser)
    add_model_options(parser)
    add_machine_options(parser)
    add_output_options(parser, "--draw", "racks, nodes and devices")


def _add_placement_options(parser: CommandParser) -> None:
    group = parser.add_argument_group("placement")
    parser.add_flag(
        group,
        "--scorer",
        **one_of(*SCORERS),
        default=SCORERS[0],
        help="What a device costs: memory left stranded and parameters to load cold (fragment), "
        f"or what FlexPipe says. [{SCORERS[0]}]",
    )
    parser.add_flag(
        group,
        "--tolerance",
        type=_share,
        default=0.0,
        metavar="X",
        help="How much slower than the fastest a placement may be for shorter hops or a better "
        "score: 0.05 is 5 %%; inf leaves it to them. [0]",
    )
    parser.add_flag(
        group,
        "--hop-tolerance",
        type=_share,
        default=0.0,
        metavar="X",
        help="How much longer than the least a microbatch may spend between stages for a better "
        "score, as a share of its pass through all stages: 0.01 is 1 %%; inf leaves it to the "
        "score. [0]",
    )
    parser.add_flag(
        group,
        "--stages-per-device",
        type=positive,
        default=1,
        metavar="N",
        help="Stages that a device may get; each then has an equal part of it. [1]",
    )


def run(arguments: argparse.Namespace) -> int:
    """Place, print and draw.

    Raises:
        UserError: the options contradict each other, the cluster file, the mesh or the model cannot
            be read, the model does not fit, or a picture cannot be written.
    """
    for path in arguments.draw:
        check_picture("draw", path)
    if arguments.mesh is not None and (arguments.stages or arguments.tensor):
        raise UserError("--mesh says all of the stages; leave out --stages and --tensor")
    check_named(arguments, () if arguments.mesh is None else (arguments.mesh,))

    from fjx.cli.placing import Placing

    placing = Placing(arguments)
    for path in arguments.draw:
        write_picture("draw", path, placing.picture())
    print(placing.as_json() if arguments.json else placing.table())
    return 0


def _share(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, or inf, got {word!r}")
    return number
