"""Jinja's sandbox with a budget: what a template computes is counted before it is done.

Jinja's own sandbox keeps templates from Python's insides, but not from taking all time and memory.
Here every kind of expression that computes goes through the environment: operators, comparisons,
concatenation, slices, literals of containers, calls, filters, tests and output.
"""

# ruff: noqa: N802 - Jinja calls visitors by the names of its nodes

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from fjx.models.template_budget import budget
from fjx.models.template_costs import (
    READ_ONLY_METHODS,
    joined,
    spend_on_call,
    spend_on_comparison,
    spend_on_operator,
)
from fjx.models.template_filters import counted_filter, counted_test, join

MAX_NODES = 10_000
"""Elements of a template's syntax; the largest of published models have a fifth of it."""

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda value, container: value in container,
    "notin": lambda value, container: value not in container,
}


class TemplateNamespace(Namespace):
    """``namespace()``: attributes that a template may set, none with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args  # so that an attribute may be called self
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        # Jinja's writes out all that is in it, however large or nested.
        return "<Namespace>"


class CountingSandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates spend the budget in `fjx.models.template_budget.BUDGET`."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self, **options: Any) -> None:
        # Not optimized: constants would be computed while compiling.
        super().__init__(**options, optimized=False, finalize=_written)
        self.code_generator_class = _CountingCodeGenerator
        del self.globals["lipsum"]
        self.globals["namespace"] = TemplateNamespace
        tests: dict[str, Any] = self.tests
        for name, test in tests.items():
            tests[name] = counted_test(name, test)
        for name, function in self.filters.items():
            self.set_filter(name, function)
        self.filters["join"] = join

    def set_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add a filter or replace the one of this name."""
        self.filters[name] = counted_filter(name, function)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``left + right`` and the like."""
        spent = budget()
        spend_on_operator(spent, operator, left, right)
        return spent.made(super().call_binop(context, operator, left, right))

    # A template may name an argument "self".
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """``function(args)``."""
        spent = budget()
        own = {name: value for name, value in kwargs.items() if name not in _JINJAS_ARGUMENTS}
        name = spend_on_call(spent, __obj, args, own)
        if name == "join":
            args = (joined(spent, __obj.__self__, *args),)
        result = super().call(__context, __obj, *args, **kwargs)
        return result if name in READ_ONLY_METHODS else spent.made(result)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``."""
        budget().read(argument)
        return super().getitem(obj, argument)

    # What only compiled templates call, see `_CountingCodeGenerator`.

    def begin_block(self) -> bool:
        """A loop's turn, a branch or a macro begins."""
        budget().step()
        return True

    def write(self, size: int) -> None:
        """Text of the template itself goes out."""
        budget().make(size)

    def made(self, value: Any) -> Any:
        """A container was written down."""
        budget().step()
        return budget().made(value)

    def concatenate(self, *values: Any) -> str:
        """``a ~ b``."""
        spent = budget()
        spent.read(*values)
        spent.make(sum(map(spent.weigh, values)))
        return "".join(map(str, values))

    def compare(self, operator: str, left: Any, right: Any) -> Any:
        """``left < right`` and the like."""
        spend_on_comparison(budget(), operator, left, right)
        return _COMPARISONS[operator](left, right)

    def compare_chain(self, left: Any, *others: tuple[str, Callable[[], Any]]) -> Any:
        """``a < b < c``: as Python, no further than it is true."""
        found: Any = True
        for name, other in others:
            right = other()
            found = self.compare(name, left, right)
            if not found:
                break
            left = right
        return found

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """``value[start:stop:step]``."""
        budget().step()
        return budget().made(value[start:stop:step])

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        if sum(1 for _ in source.find_all(nodes.Node)) > MAX_NODES:
            raise SecurityError(f"it has more than {MAX_NODES:,} elements")
        return super()._generate(source, *args, **kwargs)


_JINJAS_ARGUMENTS = ("_loop_vars", "_block_vars", "caller")


class _CountingCodeGenerator(CodeGenerator):
    """Writes calls of a `CountingSandbox` where Jinja writes Python's operators."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.begin_block()")
        super().blockvisit(nodes, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        if node.test is not None:
            begin = nodes.EnvironmentAttribute("begin_block")
            node.test = nodes.And(nodes.Call(begin, [], [], None, None), node.test)
        super().visit_For(node, frame)

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:
        constants = (each for each in node.nodes if isinstance(each, _CONSTANTS))
        if size := sum(len(str(each.as_const(frame.eval_ctx))) for each in constants):
            self.writeline(f"environment.write({size})")
        super().visit_Output(node, frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        # Others would be computed while compiling.
        if not isinstance(node, _CONSTANTS):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._call("concatenate", node.nodes, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        if len(node.ops) == 1:
            operand = node.ops[0]
            self._call("compare", [nodes.Const(operand.op), node.expr, operand.expr], frame)
            return
        self.write("environment.compare_chain(")
        self.visit(node.expr, frame)
        for operand in node.ops:
            self.write(f", ({operand.op!r}, lambda: ")
            self.visit(operand.expr, frame)
            self.write(")")
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        given = [nodes.Const(None) if each is None else each for each in bounds]
        self._call("cut", [node.node, *given], frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        counted = node.ctx == "load"  # not the targets of an assignment
        self.write("environment.made(" if counted else "")
        super().visit_Tuple(node, frame)
        self.write(")" if counted else "")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self.write("environment.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("environment.made(")
        super().visit_Dict(node, frame)
        self.write(")")

    def _call(self, name: str, args: Sequence[nodes.Expr], frame: Frame) -> None:
        self.write(f"environment.{name}(")
        for arg in args:
            self.visit(arg, frame)
            self.write(", ")
        self.write(")")


_CONSTANTS = (nodes.TemplateData, nodes.Const)


def _written(value: Any) -> str:
    """What ``{{ value }}`` writes."""
    spent = budget()
    if type(value) is not str:
        spent.read(value)
        value = str(value)
    spent.make(len(value))
    text: str = value
    return text


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have an attribute {name!r}; drop the underscore")
