"""Text that every machine with Python has: the standard library's signatures and documentation.

The Python Software Foundation License permits its use. Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "ensurepip"}
_PASSAGE_LETTERS = range(250, 1200)
_MAX_SOURCE_BYTES = 400_000


@dataclass(frozen=True)
class Function:
    """A documented function of the standard library."""

    name: str
    arguments: str
    """The signature, in parentheses."""
    doc: str

    @property
    def sentence(self) -> str:
        """The first sentence of its documentation."""
        first = " ".join(self.doc.split("\n\n")[0].split())
        return first if first.endswith(".") else f"{first}."

    @property
    def stub(self) -> str:
        """Signature and documentation, to be completed."""
        doc = "\n".join(f"    {line}".rstrip() for line in self.doc.splitlines())
        return f'def {self.name}{self.arguments}:\n    """{doc.strip()}\n    """\n'


@cache
def functions() -> tuple[Function, ...]:
    """Functions with documentation of some length, in a fixed order."""
    found = {}
    for tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                doc = ast.get_docstring(node)
                if doc and 40 <= len(doc) <= 700:
                    found[node.name] = Function(node.name, _signature(node.args), doc)
    return tuple(found[name] for name in sorted(found))


@cache
def passages() -> tuple[str, ...]:
    """Paragraphs of prose, in a fixed order."""
    found = set()
    for tree in _modules():
        for text in _texts(tree):
            for paragraph in re.split(r"\n\s*\n", text):
                passage = " ".join(paragraph.split())
                if len(passage) in _PASSAGE_LETTERS and _is_prose(passage):
                    found.add(passage)
    return tuple(sorted(found))


def _signature(arguments: ast.arguments) -> str:
    """The arguments in parentheses, as a function that is no method would have them."""
    plain = ast.arguments(**dict(ast.iter_fields(arguments)))
    plain.posonlyargs, plain.args = (
        [each for each in group if each.arg != "self"]
        for group in (arguments.posonlyargs, arguments.args)
    )
    return f"({ast.unparse(plain)})"


def _is_prose(text: str) -> bool:
    plain = sum(letter.isalpha() or letter in " ,." for letter in text)
    return text[0].isupper() and text[-1] in ".:" and plain > 0.93 * len(text)


def _texts(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef():
                yield ast.get_docstring(node) or ""
            case ast.Dict(values=values):  # pydoc_data holds the language reference like this
                for value in values:
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield value.value


@cache
def _modules() -> tuple[ast.Module, ...]:
    return tuple(_parsed(Path(sysconfig.get_paths()["stdlib"])))


def _parsed(root: Path) -> Iterator[ast.Module]:
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts[:-1]):
            large = path.stat().st_size > _MAX_SOURCE_BYTES and path.name != "topics.py"
            try:
                if not large:
                    yield ast.parse(path.read_text(encoding="utf-8"))
            except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
                continue  # such as a file written for another version
