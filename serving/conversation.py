"""From the messages of a request to what a chat template takes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fjx.serving.errors import invalid
from fjx.serving.fields import unknown_field, unsupported
from fjx.serving.protocol import ChatMessage, ChatRequest, ContentPart, TokenizeRequest, ToolCall
from fjx.wording import shortened

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
"""What every template is expected to know, or to refuse in its own words."""
_RESERVED = {
    "add_generation_prompt": "use the field add_generation_prompt",
    "chat_template": "only the model's own template is run",
    "continue_final_message": "use the field continue_final_message",
    "messages": "use the field messages",
    "self": "the name is taken",
}
"""Template variables that a request must not set, and why."""
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_HARMLESS_IN_PARTS = frozenset({"annotations", "cache_control"})
_HARMLESS_IN_MESSAGES = frozenset({"annotations", "cache_control", "id", "refusal"})
_REFUSED_IN_MESSAGES = {
    "audio": "messages are text",
    "function_call": "calls are given as tool_calls",
}


@dataclass(frozen=True)
class Conversation:
    """What a chat template renders."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool
    continue_final_message: bool
    variables: dict[str, Any]

    def check_nothing_dropped(self, prompt: str) -> None:
        """Raise a 400 where the template has left out a message, because of its unusual role."""
        for position, message in enumerate(self.messages):
            if message["role"] not in _ROLES and message["content"].strip() not in prompt:
                raise invalid(
                    f"messages[{position}].role: this model's chat template does not know the role "
                    f"{message['role']!r}",
                    f"messages[{position}].role",
                )


def conversation_of(
    body: ChatRequest | TokenizeRequest,
    messages: Sequence[ChatMessage],
    template: str | None,
    tools: list[dict[str, Any]] | None = None,
) -> Conversation:
    """What a request wants rendered.

    Args:
        body: the request.
        messages: its messages.
        template: source of the model's chat template.
        tools: what the template shall see as ``tools``.

    Raises:
        ApiError: something of it would not reach the model.
    """
    source = template or ""
    variables = dict(body.chat_template_kwargs or {})
    for name in variables.keys() & _RESERVED.keys():
        raise invalid(
            f"chat_template_kwargs must not hold {name!r}: {_RESERVED[name]}",
            "chat_template_kwargs",
        )
    effort = getattr(body, "reasoning_effort", None)
    given = {"documents": body.documents, "tools": tools}
    given["reasoning_effort"] = None if effort == "none" else effort
    for name, value in given.items():
        if value:
            if not _mentions(source, name):
                raise unsupported(name, name, "this model's chat template does not use it")
            variables[name] = value
    going_on = bool(body.continue_final_message)
    if going_on and body.add_generation_prompt:
        raise invalid(
            "continue_final_message continues the last message and add_generation_prompt begins a "
            "new one; set one of them",
            "continue_final_message",
        )
    return Conversation(
        messages=[
            _plain(message, f"messages[{position}]", source)
            for position, message in enumerate(messages)
        ],
        add_generation_prompt=not going_on and body.add_generation_prompt is not False,
        continue_final_message=going_on,
        variables=variables,
    )


def message_text(message: ChatMessage) -> str:
    """A message's content as one string; parts are joined by line breaks."""
    if isinstance(message.content, list):
        return "\n".join(part.text or part.refusal or "" for part in message.content)
    return message.content or ""


def _plain(message: ChatMessage, path: str, template: str) -> dict[str, Any]:
    """A message as templates know it: a string as content, arguments of calls as objects."""
    if message.content is None and message.role != "assistant":
        raise invalid(f"{path}.content is required", f"{path}.content")
    for part in message.content if isinstance(message.content, list) else ():
        _check_part(part, f"{path}.content")
    plain: dict[str, Any] = {"role": message.role, "content": message_text(message)}
    if message.role == "developer" and not _mentions(template, "developer"):
        # OpenAI's newer name for the same role.
        plain["role"] = "system"
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    reasoning = message.reasoning if message.reasoning is not None else message.reasoning_content
    if reasoning is not None:
        plain |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if message.tool_calls:
        plain["tool_calls"] = [
            _plain_call(call, f"{path}.tool_calls[{position}]")
            for position, call in enumerate(message.tool_calls)
        ]
    return {**_further(message, path, template), **plain}


def _further(message: ChatMessage, path: str, template: str) -> dict[str, Any]:
    """Fields that only this model's template knows."""
    further = {}
    for name, value in (message.model_extra or {}).items():
        if value is None or name in _HARMLESS_IN_MESSAGES:
            continue
        if name in _REFUSED_IN_MESSAGES:
            raise unsupported(name, f"{path}.{name}", _REFUSED_IN_MESSAGES[name])
        if not _mentions(template, name):
            raise unknown_field(name, ChatMessage.model_fields, f"{path}.")
        further[name] = value
    return further


def _check_part(part: ContentPart, path: str) -> None:
    if part.type not in _TEXT_PARTS and part.type != "refusal":
        raise unsupported(f"content of type {shortened(part.type)!r}", path, "messages are text")
    name = "refusal" if part.type == "refusal" else "text"
    if getattr(part, name) is None:
        raise invalid(f"{path}: a part of type {part.type!r} needs {name}", path)
    for name, value in (part.model_extra or {}).items():
        if value is not None and name not in _HARMLESS_IN_PARTS:
            raise unknown_field(name, ContentPart.model_fields, f"{path}.")


def _plain_call(call: ToolCall, path: str) -> dict[str, Any]:
    arguments = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            name = f"{path}.function.arguments"
            raise invalid(f"{name} must be a string that holds a JSON object", name)
    function = {**(call.function.model_extra or {}), "name": call.function.name}
    plain = {"type": call.type, "function": {**function, "arguments": arguments or {}}}
    if call.id is not None:
        plain["id"] = call.id
    return {**(call.model_extra or {}), **plain}


def _mentions(template: str, name: str) -> bool:
    """Whether a template names a variable, a field or a role."""
    return name.isidentifier() and re.search(rf"\b{name}\b", template) is not None
