"""Jinja's filters and tests, with what they cost counted first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import GeneratorType
from typing import Any

from jinja2.filters import FILTERS, make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.utils import pass_eval_context

from fjx.models.template_budget import (
    ENTRY_BYTES,
    Budget,
    TemplateLimitError,
    budget,
    shallow_size,
)
from fjx.models.template_costs import (
    MAX_WIDTH,
    joined,
    names,
    spend_on_format,
    spend_on_replacement,
)

_GLANCES = names(
    "abs attr count d default first items last length map random reject rejectattr round safe "
    "select selectattr"
)
"""Filters that do not look at all of their operands, and give none but what is there already."""
_SHALLOW = names("batch list reverse slice")
_SLOW = names(
    "indent pprint striptags title tojson truncate urlencode urlize wordcount wordwrap xmlattr"
)
"""Filters that are written in Python, or take several times what they read."""
_SLOWNESS = 16
_READING_TESTS = names(
    "!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper"
)


def counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter of this name, which counts its cost before it begins."""
    spend_more = _COSTS.get(name)

    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        spent = budget()
        # The context that some filters get is no operand.
        operands = args[1:] if hasattr(function, "jinja_pass_arg") else args
        _spend_on_reading(spent, name, (*operands, *kwargs.values()))
        if spend_more is not None:
            spend_more(spent, *operands, **kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, GeneratorType):
            return spent.counted(result)
        return result if name in _GLANCES else spent.made(result)

    return filtered


def counted_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The test of this name, which counts its cost before it begins."""

    @wraps(function)
    def tested(*args: Any, **kwargs: Any) -> Any:
        if name in _READING_TESTS:
            budget().read(*args)
        else:
            budget().step()
        return function(*args, **kwargs)

    return tested


@pass_eval_context
def join(eval_ctx: EvalContext, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    """Jinja's filter of this name, whose values are counted one by one."""
    if attribute is not None:
        value = map(make_attrgetter(eval_ctx.environment, attribute), value)
    text: str = FILTERS["join"](eval_ctx, joined(budget(), d, value), d)
    return text


def _spend_on_reading(spent: Budget, name: str, operands: tuple[Any, ...]) -> None:
    if name in _GLANCES:
        spent.step()
    elif name in _SHALLOW:
        spent.step(sum(map(shallow_size, operands)))
    else:
        size = sum(map(spent.weigh, operands))
        spent.step(size * _SLOWNESS if name in _SLOW else size)


def _no_wider(width: Any) -> None:
    if isinstance(width, int) and width > MAX_WIDTH:
        raise TemplateLimitError(f"it asks a filter for a width of {width}, above {MAX_WIDTH}")


def _center(spent: Budget, value: Any, width: int = 80) -> None:
    _no_wider(width)


def _indent(spent: Budget, value: Any, width: int | str = 4, *_: Any, **__: Any) -> None:
    _no_wider(width)
    each = len(width) if isinstance(width, str) else max(width, 0)
    spent.make(shallow_size(value) + 4 * each * (1 + str(value).count("\n")))


def _lines(spent: Budget, value: Any, count: int, *_: Any, **__: Any) -> None:
    _no_wider(count)


def _json(
    spent: Budget, value: Any, ensure_ascii: bool = False, indent: Any = None, *_: Any, **__: Any
) -> None:
    size = spent.weigh(value)
    if indent is not None:
        each = len(indent) if isinstance(indent, str) else max(indent, 0)
        size += size // ENTRY_BYTES * each * _depth(value)
    spent.make(size)


def _depth(value: Any) -> int:
    if not isinstance(value, list | tuple | Mapping):
        return 0
    entries = value.values() if isinstance(value, Mapping) else value
    return 1 + max(map(_depth, entries), default=0)


def _links(spent: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    links = sum(map(str(value).count, ".:@"))
    spent.make(links * sum(map(spent.weigh, (*args, *kwargs.values()))))


def _round(spent: Budget, value: Any, precision: int = 0, *_: Any, **__: Any) -> None:
    if abs(precision) > 100:
        raise TemplateLimitError(f"it rounds to {precision} digits, more than 100")


def _wrap(
    spent: Budget,
    value: Any,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    *_: Any,
    **__: Any,
) -> None:
    spent.make(shallow_size(value) * (1 + len(wrapstring or "\n")))


def _percent(spent: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    spend_on_format(spent, str(value), (args, kwargs))


_COSTS: dict[str, Callable[..., None]] = {
    "batch": _lines,
    "center": _center,
    "format": _percent,
    "indent": _indent,
    "replace": spend_on_replacement,
    "round": _round,
    "slice": _lines,
    "tojson": _json,
    "urlize": _links,
    "wordwrap": _wrap,
}
