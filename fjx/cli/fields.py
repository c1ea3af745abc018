"""Fields of config dataclasses, as the command line and the TOML file see them."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_FACTORS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_DECIMAL = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)

KIND_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """One field of a config dataclass."""

    name: str
    help: str
    """The docstring under the field."""
    default: Any
    kind: type
    """bool, int, float, str or Path; of a list, that of its items; of a mapping, of its values."""
    shape: Literal["scalar", "list", "mapping"] = "scalar"
    key_kind: type = str
    """Type of a mapping's keys."""
    choices: tuple[str, ...] = ()
    optional: bool = False
    """Whether None is a value of the field."""

    @property
    def accepts_none(self) -> bool:
        """Whether the word "none" has a use: None is allowed, and not what one gets anyway."""
        return self.optional and self.default is not None and self.kind is not str

    def parse(self, text: str) -> Any:
        """Convert one word of the command line: a value, an item of a list, or KEY=VALUE.

        Raises:
            ValueError: the word is not of the field's type; the message says what was expected.
        """
        if self.accepts_none and text == "none":
            return None
        if self.shape == "mapping":
            key, separator, value = text.partition("=")
            if not separator:
                raise ValueError(f"expected KEY=VALUE, got {text!r}")
            return _parse(key, self.key_kind), _parse(value, self.kind)
        return self._choice(_parse(text, self.kind))

    def from_toml(self, value: object) -> Any:
        """Convert a parsed TOML value.

        Raises:
            ValueError: the value is not of the field's type; the message says what was expected.
        """
        if self.accepts_none and value == "none":
            return None
        if self.shape == "list":
            items = value if isinstance(value, list) else [value]
            try:
                return tuple(self._choice(_convert(item, self.kind)) for item in items)
            except ValueError:
                if items is value:
                    raise
                raise ValueError(f"expected a list, got {value!r}") from None
        if self.shape == "mapping":
            if not isinstance(value, dict):
                raise ValueError(f"expected a table, got {value!r}")
            return {
                _parse(key, self.key_kind): _convert(item, self.kind) for key, item in value.items()
            }
        return self._choice(_convert(value, self.kind))

    def _choice(self, value: Any) -> Any:
        if self.choices and value not in self.choices:
            raise ValueError(f"expected one of {', '.join(self.choices)}; got {value!r}")
        return value


def field_specs(config: type) -> tuple[FieldSpec, ...]:
    """Describe the fields of a dataclass, in their order.

    Raises:
        TypeError: a field has a type that has no form on the command line, or no default.
    """
    docs = field_docs(config)
    hints = get_type_hints(config)
    return tuple(
        _spec(field, hints[field.name], docs.get(field.name, "")) for field in fields(config)
    )


def field_docs(config: type) -> dict[str, str]:
    """Read the docstring under each field of a dataclass from its source, inherited ones too."""
    docs: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not is_dataclass(owner):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(doc))),
                ):
                    docs[name] = " ".join(doc.replace("``", "").split())
    return docs


def _spec(field: Field[Any], hint: Any, doc: str) -> FieldSpec:
    default = field.default
    if field.default_factory is not MISSING:
        default = field.default_factory()
    if default is MISSING:
        raise TypeError(f"{field.name} needs a default to be an option")
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not types.NoneType]
        optional = len(members) < len(get_args(hint))
        (hint,) = members
    spec: dict[str, Any] = {"name": field.name, "help": doc, "default": default}
    arguments = get_args(hint)
    match get_origin(hint):
        case origin if origin is Literal:
            spec |= {"kind": str, "choices": arguments}
        case origin if origin in (tuple, list):
            spec |= {"kind": arguments[0], "shape": "list"}
        case origin if origin is dict:
            spec |= {"kind": arguments[1], "key_kind": arguments[0], "shape": "mapping"}
        case _:
            spec |= {"kind": hint}
    if spec["kind"] not in KIND_WORDS:
        raise TypeError(f"{field.name} has a type without a form on the command line: {hint}")
    return FieldSpec(**spec, optional=optional)


def _parse(text: str, kind: type) -> Any:
    try:
        return _whole_number(text) if kind is int else kind(text)
    except ValueError:
        raise ValueError(f"expected {KIND_WORDS[kind]}, got {text!r}") from None


def _whole_number(text: str) -> int:
    """A whole number; as in vLLM, ``8k`` is 8,000 and ``8K`` is 8,192.

    Raises:
        ValueError: it is none.
    """
    factor = _FACTORS.get(text[-1:])
    if factor is None:
        return int(text)
    number = Decimal(text[:-1]) * factor if _DECIMAL.fullmatch(text[:-1]) else Decimal("0.5")
    if number != int(number):
        raise ValueError(text)
    return int(number)


def _convert(value: object, kind: type) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"expected {KIND_WORDS[kind]}, got {value!r}")
