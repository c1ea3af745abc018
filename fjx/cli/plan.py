"""``fjx plan``: how a model would be cut into stages, without loading it."""

from __future__ import annotations

import argparse
import json

from fjx.cli.options import CommandParser
from fjx.cli.pictures import check_picture, write_picture
from fjx.cli.shared_options import (
    add_machine_options,
    add_model_options,
    add_output_options,
    add_workload_options,
    check_named,
)
from fjx.config import EngineConfig

EXAMPLES = """examples:
  fjx plan --mesh pipeline-4 --output plan.svg
  fjx plan --mesh pipeline-4 --from pipeline-2
  fjx plan --mesh auto --model Qwen/Qwen3-8B --devices 4 --device-memory 16
  fjx plan --mesh my.toml --cluster cluster.toml --profile profile.json
"""


def add_options(parser: CommandParser) -> None:
    """Add the options of this command."""
    parser.epilog = EXAMPLES
    _add_plan_options(parser)
    add_model_options(parser)
    add_machine_options(parser)
    add_output_options(parser, "--output", "the plan")


def _add_plan_options(parser: CommandParser) -> None:
    group = parser.add_argument_group("plan")
    parser.add_flag(
        group,
        "--mesh",
        default=EngineConfig.mesh,
        metavar="TEXT",
        help="Devices and stages: the name of a ready-made mesh, a mesh file, or auto: as few "
        f"stages as the devices' free memory allows. [{EngineConfig.mesh}]",
    )
    parser.add_flag(
        group,
        "--from",
        dest="before",
        metavar="MESH",
        help="Show what going there from this mesh would move, with all token slots in use.",
    )
    add_workload_options(parser, group)


def run(arguments: argparse.Namespace) -> int:
    """Plan, print and draw.

    Raises:
        UserError: the options contradict each other, the model cannot be read, the mesh does not
            suit it or the machine, or a picture cannot be written.
    """
    for path in arguments.output:
        check_picture("output", path)
    meshes = [mesh for mesh in (arguments.mesh, arguments.before) if mesh is not None]
    check_named(arguments, meshes)

    from fjx.cli.planning import Planning

    planning = Planning(arguments)
    before = None if arguments.before is None else planning.plan(arguments.before)
    plan = planning.plan(arguments.mesh, before)
    way = f"{arguments.before} to {arguments.mesh}"
    for path in arguments.output:
        write_picture("output", path, planning.picture(plan, before, f"From {way}"))
    if arguments.json:
        print(json.dumps(planning.as_json(plan)))
        return 0
    print(planning.table(plan))
    if before is not None:
        print(f"\nfrom {way}")
        print(planning.difference(before, plan))
    return 0
