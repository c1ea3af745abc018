"""Chat templates: Jinja2 in a sandbox, with what Hugging Face's templates expect to find."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fjx.errors import RequestError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template for models that bring none but know its tokens."""


class ChatTemplate:
    """A chat template, compiled at its first use.

    The source comes with the model and is not trusted: it runs in Jinja's immutable sandbox.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def render(self, messages: Sequence[Mapping[str, Any]], /, **variables: Any) -> str:
        """The text of a conversation.

        Args:
            messages: each with "role" and "content", and whatever else the template knows.
            variables: what else the template sees, such as ``add_generation_prompt`` and
                ``bos_token``.

        Raises:
            RequestError: the template is broken or refuses the messages; with its own words.
        """
        given = {"tools": None, "documents": None, **variables, "messages": messages}
        try:
            return self._compiled.render(given)
        except RequestError:
            raise
        except Exception as error:
            # The template is a program of the model's author: anything can come out of it.
            raise RequestError(
                f"the chat template cannot render these messages: {error}"
            ) from error

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return _ENVIRONMENT.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise RequestError(
                f"the model's chat template is broken: line {error.lineno}: {error.message}"
            ) from error


class _GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models have not been trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _environment()
