"""What single operations of chat templates cost, before they are done.

Most read their operands and make no more than that. What can make much out of little (repetition,
widths, joins, replacements, powers) is estimated from its operands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

from jinja2.exceptions import SecurityError

from fjx.models.template_budget import ENTRY_BYTES, Budget, TemplateLimitError, shallow_size

MAX_INTEGER_BITS = 4096
MAX_WIDTH = 9999
"""Of a formatted field, an indentation, the lines of a batch."""

_CHARACTER = 4
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_NUMBER = re.compile(r"\d+")
_WIDTH_FROM_ARGUMENT = re.compile(r"%[^a-zA-Z%]*\*|:[^{}]*\{")


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


READ_ONLY_METHODS = names("count find get index items keys rfind values")
_METHODS: dict[type, frozenset[str]] = {
    str: names(
        "capitalize casefold center count encode endswith expandtabs find format format_map index "
        "isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable "
        "isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix "
        "replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip "
        "swapcase title upper zfill"
    ),
    bytes: names("decode endswith hex startswith"),
    dict: names("copy fromkeys get items keys values"),
    list: names("copy count index"),
    tuple: names("count index"),
    int: names("bit_length"),
    float: names("is_integer"),
}


def spend_on_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Count ``left + right`` and the like."""
    budget.step(shallow_size(left) + shallow_size(right))
    if operator == "%" and isinstance(left, str):
        spend_on_format(budget, left, (right,))
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if operator == "**":
            bits = left.bit_length() * right
        if bits > MAX_INTEGER_BITS:
            raise TemplateLimitError(f"it makes a number of more than {MAX_INTEGER_BITS} bits")
    elif operator == "*":
        repeated, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(times, int) and isinstance(repeated, str):
            budget.make(_CHARACTER * len(repeated) * max(times, 0))
        elif isinstance(times, int):
            budget.make(budget.weigh(repeated) * max(times, 0))


def spend_on_comparison(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Count ``left == right``, or ``left in right``, and the like."""
    if operator not in ("in", "notin"):
        budget.step(min(budget.weigh(left), budget.weigh(right)))
    elif isinstance(right, str | bytes):
        budget.step(shallow_size(right))
    elif isinstance(right, list | tuple):
        entries = shallow_size(right)
        budget.step(min(budget.weigh(right), entries + len(right) * budget.weigh(left)))
    else:
        budget.read(left)


def spend_on_format(budget: Budget, template: str, operands: Any) -> None:
    """Count ``template % operands`` or ``template.format(operands)``."""
    budget.read(template, operands)
    fields = template.count("%") + template.count("{")
    numbers = _NUMBER.findall(template) if fields else []
    if any(len(each) > 4 for each in numbers) or _WIDTH_FROM_ARGUMENT.search(template):
        raise TemplateLimitError(
            f"it formats a text with a width above {MAX_WIDTH} or one that is computed"
        )
    widths = _CHARACTER * sum(map(int, numbers))
    budget.make(shallow_size(template) + fields * budget.weigh(operands) + widths)


def spend_on_replacement(budget: Budget, text: Any, old: Any, new: Any, *_: Any) -> None:
    """Count ``text.replace(old, new)``."""
    text, old, new = str(text), str(old), str(new)
    times = text.count(old) if old else len(text) + 1
    budget.make(shallow_size(text) + times * _CHARACTER * len(new))


def joined(budget: Budget, separator: Any, values: Any) -> list[Any]:
    """The values of a join, counted one by one, since they may come from a lazy filter."""
    items = []
    for value in values:
        items.append(value)
        budget.step()
        budget.make(budget.weigh(value) + budget.weigh(separator))
    return items


def spend_on_call(
    budget: Budget, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """Count a call; give the name of a method of a builtin type.

    Raises:
        SecurityError: it is a method that chat templates cannot have.
    """
    if isinstance(function, FunctionType):
        # The sandbox's own str.format; macros and Jinja's functions count their steps themselves.
        function = getattr(function, "__wrapped__", function)
    owner = getattr(function, "__self__", None)
    if not isinstance(function, BuiltinMethodType | MethodType) or owner is None:
        budget.step()
        return None
    owner_type = owner if isinstance(owner, type) else type(owner)
    kind = next((kind for kind in _METHODS if issubclass(owner_type, kind)), None)
    if kind is None:
        budget.step()  # of Jinja's own objects, such as loop.cycle
        return None
    name: str = function.__name__
    if name not in _METHODS[kind]:
        raise SecurityError(f"{kind.__name__}.{name} is not available in chat templates")
    if kind is dict:
        budget.read(*args)
    else:
        budget.read(owner, *args, *kwargs.values())
    if kind is str and (spend := _METHOD_COSTS.get(name)) is not None:
        spend(budget, owner, *args, **kwargs)
    return name


def _width(budget: Budget, text: str, width: int, *_: Any) -> None:
    budget.make(shallow_size(text) + _CHARACTER * max(width, 0))


def _tabs(budget: Budget, text: str, tabsize: int = 8) -> None:
    budget.make(shallow_size(text) + text.count("\t") * max(tabsize, 0) * _CHARACTER)


def _split(budget: Budget, text: str, sep: str | None = None, maxsplit: int = -1) -> None:
    parts = text.count(sep) if sep else sum(map(text.count, " \t" + _LINE_ENDS))
    if not sep and not text.isascii():
        parts = len(text) // 2  # Unicode has more spaces
    if maxsplit >= 0:
        parts = min(parts, maxsplit)
    budget.make(shallow_size(text) + ENTRY_BYTES * (1 + parts))


def _split_lines(budget: Budget, text: str, keepends: bool = False) -> None:
    lines = 1 + sum(map(text.count, _LINE_ENDS))
    budget.make(shallow_size(text) + ENTRY_BYTES * lines)


def _format(budget: Budget, text: str, *args: Any, **kwargs: Any) -> None:
    spend_on_format(budget, text, (args, kwargs))


_METHOD_COSTS: dict[str, Callable[..., None]] = {
    "center": _width,
    "expandtabs": _tabs,
    "format": _format,
    "format_map": _format,
    "ljust": _width,
    "replace": spend_on_replacement,
    "rjust": _width,
    "rsplit": _split,
    "split": _split,
    "splitlines": _split_lines,
    "zfill": _width,
}
