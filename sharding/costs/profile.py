"""Profiles: the measured costs of a model's pieces, as JSON.

::

    {"format": "fjx-profile-1",
     "model": "smollm2-135m",
     "machine": {"device": "cpu", "jax": "0.10.2"},
     "split_sizes": {"query heads": 9, "KV heads": 3},
     "buckets": [2, 4, 8],
     "embed": {"layers": 0, "seconds": {"1": [1e-5, 1e-5, 2e-5]}, ...},
     "granules": [{"layers": 5,
                   "split_parameter_bytes": 70000000,
                   "whole_parameter_bytes": 23040,
                   "kv_bytes_per_token": 3840,
                   "seconds": {"1": [3e-3, 4e-3, 5e-3], "3": [2e-3, 2e-3, 3e-3]},
                   "activation_bytes": [4608, 9216, 18432]}, ...],
     "head": {...}}

The keys of a piece are the fields of `PieceCost`; ``seconds`` has a list for each tensor degree
that was measured. ``machine`` is for people; ``split_sizes`` may be left out.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from fjx.errors import MeshError
from fjx.sharding.costs.graph import GranuleGraph, PieceCost
from fjx.sharding.table_fields import TableFields, errors_of, is_integer, is_number

FORMAT = "fjx-profile-1"
"""What this version reads and writes."""

_COUNTS = ("layers", "split_parameter_bytes", "whole_parameter_bytes", "kv_bytes_per_token")


def graph_to_json(graph: GranuleGraph, machine: dict[str, str] | None = None) -> dict[str, Any]:
    """The graph as values for `json.dumps`.

    Args:
        graph: The costs.
        machine: What people should know of where and how they were measured.
    """
    return {
        "format": FORMAT,
        "model": graph.model,
        "machine": machine or {},
        "split_sizes": dict(graph.split_sizes),
        "buckets": list(graph.buckets),
        "embed": _piece_to_json(graph.embed),
        "granules": [_piece_to_json(granule) for granule in graph.granules],
        "head": _piece_to_json(graph.head),
    }


def read_profile(path: pathlib.Path) -> GranuleGraph:
    """Read a profile.

    Raises:
        MeshError: the file cannot be read, is not JSON, or a value is missing, unknown or wrong;
            the message says where.
    """
    label = f"profile {path}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MeshError(f"cannot read {label}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MeshError(f"{label} is not JSON: {error}") from None
    except ValueError as error:  # a name that no file can have
        raise MeshError(f"cannot read profile {str(path)!r}: {error}") from None
    return graph_from_json(values, label)


def graph_from_json(values: Any, label: str = "profile") -> GranuleGraph:
    """Read `graph_to_json` back from parsed JSON.

    Args:
        values: The parsed JSON.
        label: What messages call it.

    Raises:
        MeshError: a value is missing, unknown or wrong; the message says where.
    """
    error = errors_of(label)
    fields = TableFields(values, (), "the profile", error)
    if fields.get("format", None) != FORMAT:
        raise fields.error(
            "format",
            f'expected "{FORMAT}", got {fields.get("format", None)!r}; measure a new profile',
        )
    known = ("format", "model", "machine", "split_sizes", "buckets", "embed", "granules", "head")
    fields.only(known)
    sizes = TableFields(fields.get("split_sizes", {}), ("split_sizes",), "split_sizes", error)
    try:
        return GranuleGraph(
            model=fields.text("model"),
            buckets=_numbers(fields, "buckets", whole=True),
            embed=_piece(fields.table("embed")),
            granules=tuple(_piece(granule) for granule in fields.tables("granules")),
            head=_piece(fields.table("head")),
            split_sizes=tuple((name, sizes.integer(name, least=1)) for name in sizes.values),
        )
    except MeshError as found:
        if str(found).startswith(label):
            raise
        raise error((), str(found)) from None


def _piece(fields: TableFields) -> PieceCost:
    fields.only([*_COUNTS, "seconds", "activation_bytes"])
    degrees = fields.table("seconds")
    for degree in degrees.values:
        if not degree.isdecimal() or int(degree) < 1:
            raise degrees.error(degree, f"expected a tensor degree such as 1, got {degree!r}")
    return PieceCost(
        seconds=tuple(sorted((int(d), _numbers(degrees, d)) for d in degrees.values)),
        activation_bytes=_numbers(fields, "activation_bytes", whole=True),
        **{name: fields.integer(name) for name in _COUNTS},
    )


def _numbers(fields: TableFields, key: str, whole: bool = False) -> tuple[Any, ...]:
    values = fields.get(key)
    kind = is_integer if whole else is_number
    if not isinstance(values, list) or not all(kind(value) and value >= 0 for value in values):
        noun = "whole numbers" if whole else "numbers"
        raise fields.error(key, f"{key} must be a list of {noun} of at least 0, got {values!r}")
    return tuple(values) if whole else tuple(float(value) for value in values)


def _piece_to_json(piece: PieceCost) -> dict[str, Any]:
    return {
        **{name: getattr(piece, name) for name in _COUNTS},
        "seconds": {str(degree): list(seconds) for degree, seconds in piece.seconds},
        "activation_bytes": list(piece.activation_bytes),
    }
