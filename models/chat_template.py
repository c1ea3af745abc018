"""Chat templates: Jinja2 in a sandbox, with what Hugging Face's templates expect to find."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols

from fjx.errors import RequestError
from fjx.models.chat_messages import FinalMessage, plain, template_messages
from fjx.models.template_budget import BUDGET, Budget, TemplateLimitError
from fjx.models.template_sandbox import CountingSandbox

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template for models that bring none but know its tokens."""
MAX_REQUEST_TEMPLATE = 64 << 10
"""Characters of a template that a request brings; the largest of published models have 17,000."""
_MAX_FORMAT = 256


class ChatTemplate:
    """A chat template, compiled at its first use.

    The source comes with the model or a request and is not trusted: it runs in a sandbox, and what
    it may compute is limited, see `fjx.models.template_budget`.

    Args:
        source: Jinja's text.
        name: what it is called in error messages.
    """

    def __init__(self, source: str, name: str = "the model's chat template") -> None:
        self.source = source
        self.name = name

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        continue_final_message: bool | str = False,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each with "role" and "content", and whatever else the template knows.
            variables: what else the template sees, such as ``add_generation_prompt`` and
                ``bos_token``.
            continue_final_message: end within the last message, so that the model goes on with it;
                the name of a field: with this one instead of "content".

        Raises:
            RequestError: the template is broken, refuses the messages (with its own words), or
                takes too much; the last message has nothing to continue.
        """
        try:
            given = template_messages(messages)
            final = None
            if continue_final_message:
                field = "content" if continue_final_message is True else continue_final_message
                final = FinalMessage.mark(given, field, self.source)
            text = self._rendered(
                {"tools": None, "documents": None, **plain(variables), "messages": given}
            )
        except RequestError:
            raise
        except TemplateLimitError as error:
            raise RequestError(f"{self.name} takes too much: {error}") from error
        except RecursionError as error:
            raise RequestError(f"{self.name} takes too much: it calls itself too often") from error
        except Exception as error:
            # The template is a program of somebody else: anything can come out of it.
            reason = str(error) or type(error).__name__
            raise RequestError(f"{self.name} cannot render these messages: {reason}") from error
        return text if final is None else final.cut(text)

    def _rendered(self, variables: dict[str, Any]) -> str:
        template = self._compiled
        token = BUDGET.set(Budget(variables))
        try:
            context = template.new_context(variables)
            return "".join(template.root_render_func(context))
        finally:
            BUDGET.reset(token)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return _ENVIRONMENT.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise RequestError(
                f"{self.name} is broken: line {error.lineno}: {error.message}"
            ) from error
        except (jinja2.exceptions.SecurityError, RecursionError, SyntaxError, MemoryError) as error:
            raise RequestError(f"{self.name} is too large or too deeply nested: {error}") from error


@lru_cache(maxsize=16)
def request_template(source: str) -> ChatTemplate:
    """A template that a request brings.

    Raises:
        RequestError: it is too long.
    """
    if len(source) > MAX_REQUEST_TEMPLATE:
        raise RequestError(
            f"chat_template has {len(source):,} characters, more than {MAX_REQUEST_TEMPLATE:,}"
        )
    return ChatTemplate(source, "the request's chat_template")


class _GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > _MAX_FORMAT:
        raise TemplateLimitError(f"it formats the time by more than {_MAX_FORMAT} characters")
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


def _environment() -> CountingSandbox:
    environment = CountingSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.set_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _environment()
