"""A plan as a picture: its stages from left to right, and when they work.

SVG is written here, as text. PNG is rendered from it by resvg, an optional dependency
(``pip install 'fjx[png]'``): one wheel without system libraries, where CairoSVG needs cairo, and
Matplotlib would need the picture drawn a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fjx.sharding.draw_timeline import draw_timeline
from fjx.sharding.errors import MeshError
from fjx.sharding.fields import format_bytes, format_seconds
from fjx.sharding.figures import Place, StageFigures, Workload, plan_figures
from fjx.sharding.graph import GranuleGraph
from fjx.sharding.palette import ACTIVATIONS, FAINT, FREE, INK, KV, PAPER, PARAMETERS, TIME
from fjx.sharding.plan import Deployment, Plan
from fjx.sharding.svg import Canvas
from fjx.sharding.table import granules_text, short_devices, span, summary
from fjx.sharding.topology import UNKNOWN_MEMORY

_WIDTH, _MARGIN, _GAP = 1000.0, 24.0, 18.0
_PER_ROW = 6
"""Most stages side by side: a box with fewer pixels has no room for its numbers."""
_BOX_HEIGHT = 168.0
_WIDEST_BOX = 260.0
_MOST_SQUARES = 8
"""Devices that a box shows as squares; all are named below."""


def plan_svg(
    graph: GranuleGraph,
    deployment: Deployment,
    places: Sequence[Sequence[Place]],
    workload: Workload,
) -> str:
    """Draw a deployment, 1000 pixels wide, replica under replica.

    Args:
        graph: The costs of the model's pieces.
        deployment: What to show.
        places: For each replica, the places of its stages.
        workload: What seconds and bytes are for; bytes are those of each device.

    Returns:
        An SVG document.
    """
    canvas = Canvas(_WIDTH, PAPER)
    y = _MARGIN
    for number, (plan, where) in enumerate(zip(deployment.replicas, places, strict=True), start=1):
        replica = f", replica {number} of {len(deployment.replicas)}"
        title = graph.model + (replica if len(deployment.replicas) > 1 else "")
        figures = plan_figures(graph, plan, where, workload)
        y = _Drawing(canvas, graph, plan, figures, workload).draw(y, title) + _MARGIN
    return canvas.to_svg(y)


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
            "PNG needs the package resvg-py; pip install 'fjx[png]', or write SVG"
        ) from None
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=zoom))


@dataclass(frozen=True)
class _Drawing:
    canvas: Canvas
    graph: GranuleGraph
    plan: Plan
    figures: Sequence[StageFigures]
    workload: Workload

    def draw(self, y: float, title: str) -> float:
        """Draw one replica from ``y`` on, and return where it ends."""
        canvas, figures, room = self.canvas, self.figures, _WIDTH - 2 * _MARGIN
        canvas.text(_MARGIN, y + 9, title, 18, INK, bold=True, room=room)
        line = summary(self.plan, figures, self.workload)
        canvas.text(_MARGIN, y + 34, line, 12, FAINT, room=room)
        y = self._legend(y + 56) + 16
        per_row = self._per_row()
        width = min(_WIDEST_BOX, (room - _GAP * (per_row - 1)) / per_row)
        for index in range(len(figures)):
            row, column = divmod(index, per_row)
            x, top = _MARGIN + column * (width + _GAP), y + row * (_BOX_HEIGHT + _GAP)
            if column:
                canvas.arrow(x - _GAP + 2, top + _BOX_HEIGHT / 2, _GAP - 4, FAINT)
            self._box(index, x, top, width)
        rows = -(-len(figures) // per_row)
        return draw_timeline(
            canvas,
            figures,
            self.plan.microbatches,
            left=_MARGIN,
            top=y + rows * (_BOX_HEIGHT + _GAP) + 10,
            right=_WIDTH - _MARGIN,
        )

    def _per_row(self) -> int:
        """Stages side by side: rows of equal length where there are several."""
        stages = self.plan.granularity
        return -(-stages // -(-stages // _PER_ROW))

    def _legend(self, y: float) -> float:
        x = _MARGIN
        for color, label in (
            (PARAMETERS, "parameters"),
            (KV, f"KV pages of {self.workload.kv_tokens} tokens"),
            (ACTIVATIONS, "activations"),
            (FREE, "free"),
            (TIME, "time, relative to the slowest stage"),
        ):
            self.canvas.rect(x, y - 5, 10, 10, color, stroke=FAINT)
            self.canvas.text(x + 15, y, label, 11, FAINT)
            x += 38 + 6.9 * len(label)
        return y

    def _box(self, index: int, x: float, y: float, width: float) -> None:
        canvas, stage, figures = self.canvas, self.plan.stages[index], self.figures[index]
        slowest = max(each.seconds for each in self.figures)
        layers = self.graph.layers_of(stage.granules)
        canvas.rect(x, y, width, _BOX_HEIGHT, "white", stroke="#b8c0cc", radius=6)
        left, inner = x + 10, width - 20
        canvas.text(left, y + 16, f"stage {index + 1}", 13, INK, bold=True, room=inner)
        for number in range(min(stage.mesh.tensor, _MOST_SQUARES)):
            canvas.rect(x + width - 18 - 11 * number, y + 12, 8, 8, FAINT, radius=1.5)
        canvas.text(left, y + 34, short_devices(stage.mesh.devices), 11, INK, room=inner)
        pieces = granules_text(self.plan, index, "granules ")
        canvas.text(left, y + 52, pieces, 11, INK, room=inner)
        canvas.text(left, y + 67, f"layers {span(layers)}", 11, FAINT, room=inner)
        self._memory(figures, left, y + 80, inner)
        canvas.text(left, y + 103, _memory_text(figures), 11, FAINT, room=inner)
        canvas.rect(left, y + 117, inner, 10, FREE)
        canvas.rect(left, y + 117, inner * figures.seconds / (slowest or 1), 10, TIME)
        a_microbatch = f"{format_seconds(figures.seconds)} a pass"
        canvas.text(left, y + 139, a_microbatch, 11, FAINT, room=inner)
        received = f"input {format_seconds(figures.transfer_seconds)} of it"
        canvas.text(left, y + 154, received, 10, FAINT, room=inner)

    def _memory(self, figures: StageFigures, x: float, y: float, width: float) -> None:
        """What fills a device: of its free memory, or where that is unknown, of the fullest
        stage's need."""
        whole = figures.free_bytes
        if whole == UNKNOWN_MEMORY:
            whole = max(each.needed_bytes for each in self.figures)
        self.canvas.rect(x, y, width, 12, FREE)
        for size, color, name in (
            (figures.parameter_bytes, PARAMETERS, "parameters"),
            (figures.kv_bytes, KV, "KV pages"),
            (figures.activation_bytes, ACTIVATIONS, "activations"),
        ):
            part = width * size / max(whole, 1)
            self.canvas.rect(x, y, part, 12, color, title=f"{name}: {format_bytes(size)}")
            x += part


def _memory_text(figures: StageFigures) -> str:
    needed = format_bytes(figures.needed_bytes)
    if figures.free_bytes == UNKNOWN_MEMORY:
        return needed
    return f"{needed} of {format_bytes(figures.free_bytes)}"
