"""A plan as a picture: its stages, when they work, and what going there from another plan moves.

SVG is written here, as text. PNG is rendered from it by resvg, an optional dependency
(``pip install resvg-py``): one wheel without system libraries, where CairoSVG needs cairo, and
Matplotlib would need the picture drawn a second time.
"""

from __future__ import annotations

from collections.abc import Sequence

from fjx.errors import MeshError
from fjx.plots.change import Change, draw_change
from fjx.plots.chart import MARGIN, WIDTH, heading, paragraphs
from fjx.plots.palette import INK, PAPER
from fjx.plots.stages import StageRow, draw_stages
from fjx.plots.svg import Canvas
from fjx.plots.timeline import draw_timeline
from fjx.sharding.costs.figures import Place, Workload, plan_figures
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.costs.table import granules_text, short_devices, span, summary
from fjx.sharding.plan.plan import Deployment, Plan
from fjx.wording import counted


def plan_svg(
    graph: GranuleGraph,
    deployment: Deployment,
    places: Sequence[Sequence[Place]],
    workload: Workload,
    change: Change | None = None,
) -> str:
    """Draw a deployment, 900 pixels wide, replica under replica.

    Args:
        graph: The costs of the model's pieces.
        deployment: What to show.
        places: For each replica, the places of its stages.
        workload: What seconds and bytes are for; bytes are those of each device.
        change: The way there from another plan, to be drawn below.

    Returns:
        An SVG document.
    """
    canvas = Canvas(WIDTH, PAPER)
    plans = deployment.replicas
    y = heading(canvas, graph.model, end=f" in {_size(plans)}")
    for number, (plan, where) in enumerate(zip(plans, places, strict=True), start=1):
        if len(plans) > 1:
            title = f"replica {number} of {len(plans)}"
            canvas.text(MARGIN, y + 2, title, 16, INK, bold=True)
            y += 26
        y = _draw_plan(canvas, y, graph, plan, where, workload) + MARGIN
    if change is not None:
        y = draw_change(canvas, y + 6, change) + MARGIN
    return canvas.to_svg(y)


def _size(plans: Sequence[Plan]) -> str:
    """Such as ``2 replicas of 4 stages``."""
    sizes = sorted({plan.granularity for plan in plans})
    stages = counted(sizes[-1], "stage") if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]} stages"
    return f"{len(plans)} replicas of {stages}" if len(plans) > 1 else stages


def svg_to_png(svg: str, zoom: float = 2.0) -> bytes:
    """Render a picture; its texts need a font installed on the machine.

    Args:
        svg: From `plan_svg`.
        zoom: Pixels of the PNG for one of the SVG.

    Raises:
        MeshError: resvg is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise MeshError(
            "PNG needs the package resvg-py, which is not installed: pip install resvg-py, or "
            "write SVG"
        ) from None
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=zoom))


def _draw_plan(
    canvas: Canvas,
    y: float,
    graph: GranuleGraph,
    plan: Plan,
    places: Sequence[Place],
    workload: Workload,
) -> float:
    """Draw one replica from ``y`` on, and return where it ends."""
    figures = plan_figures(graph, plan, places, workload)
    y = paragraphs(canvas, y, [summary(plan, figures, workload)])
    rows = [
        StageRow(
            f"{index + 1}",
            short_devices(stage.mesh.devices),
            granules_text(plan, index),
            span(graph.layers_of(stage.granules)),
            figures[index],
        )
        for index, stage in enumerate(plan.stages)
    ]
    y = draw_stages(canvas, y, rows, extra="layers", kv_tokens=workload.kv_tokens)
    return draw_timeline(canvas, figures, plan.microbatches, y + 20)
