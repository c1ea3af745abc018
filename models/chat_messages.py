"""Messages as chat templates get them, and the marking of one that is to be continued.

As Transformers' ``apply_chat_template``: the whole message goes in, without what is null; reasoning
is there under each name that templates read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fjx.errors import RequestError

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the messages for a template.

    Raises:
        RequestError: there are none, or one is no object.
    """
    if not messages:
        raise RequestError("messages is empty; give at least one message")
    found = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise RequestError(f"a message should be an object, but is {message!r:.80}")
        copy = {key: plain(value) for key, value in message.items() if value is not None}
        reasoning = next((copy[key] for key in _REASONING_FIELDS if key in copy), None)
        if reasoning is not None:
            copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
        found.append(copy)
    return found


def plain(value: Any) -> Any:
    """The value as JSON has it; of anything else, which has methods, only its type's name."""
    if value is None or isinstance(value, bool):
        return value
    # Subclasses, such as enumerations, have methods of their own, which write them otherwise.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


@dataclass(frozen=True)
class FinalMessage:
    """A last message that ends with a mark, to be found in the rendered text."""

    content: str

    @staticmethod
    def mark(messages: list[dict[str, Any]], field: str, template: str) -> FinalMessage:
        """Put the mark at the end of the last message's text.

        Args:
            messages: of `template_messages`; changed in place.
            field: what of the message is continued.
            template: the template's source.

        Raises:
            RequestError: there is no text to continue, or the template never reads the field.
        """
        last = messages[-1]
        content = last.get(field)
        if content is None:
            raise RequestError(
                f"continue_final_message: the last message has no {field!r} to continue"
            )
        fields = [field]
        if field in _REASONING_FIELDS:
            fields = [each for each in _REASONING_FIELDS if last.get(each) == content]
        if not any(each in template for each in fields):
            raise RequestError(
                f"continue_final_message: the chat template does not know the field {field!r}"
            )
        if isinstance(content, list):
            part = next(
                (each for each in reversed(content) if isinstance(each, dict) and "text" in each),
                None,
            )
            if part is None or not isinstance(part["text"], str):
                raise RequestError(
                    "continue_final_message: the last message has no text to continue"
                )
            text = part["text"]
            part["text"] = text + _MARK
            return FinalMessage(text)
        if not isinstance(content, str):
            raise RequestError(f"continue_final_message: the last message's {field!r} is no text")
        last.update((each, content + _MARK) for each in fields)
        return FinalMessage(content)

    def cut(self, text: str) -> str:
        """The rendered text as far as the message.

        Raises:
            RequestError: the template left the message out, or changed its end.
        """
        mark = _MARK.strip()
        if self.content.strip() not in text or mark not in text:
            raise RequestError(
                "continue_final_message: the chat template leaves out the last message or a part "
                "of it, so that it cannot be continued"
            )
        end = text.rindex(mark)
        if text.startswith(_MARK, end):
            return text[:end]
        return text[:end].rstrip()  # the template strips messages
