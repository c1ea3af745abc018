"""The prompts of ``fjx generate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fjx.bench.datasets import Messages, parse_messages
from fjx.bench.files import read_json_lines
from fjx.errors import UserError

if TYPE_CHECKING:
    from fjx.models.tokenizer import Tokenizer

Prompt = str | list[int] | Messages
"""Text, token ids, or the messages of a chat."""


def user_message(text: str) -> Messages:
    """A chat of one message."""
    return ({"role": "user", "content": text},)


def read_prompts(path: Path, chat: bool) -> list[Prompt]:
    """Read JSON lines with ``prompt`` (text or token ids) or, in a chat, ``messages``.

    Args:
        path: The file; ``-`` is standard input.
        chat: Whether a text is a user's message.

    Raises:
        UserError: the file cannot be read or a line has another form; the message names the line.
    """
    prompts = [
        _prompt_of(line, chat, f"{path} line {number}") for number, line in read_json_lines(path)
    ]
    if not prompts:
        raise UserError(f"{path} holds no prompts")
    return prompts


def _prompt_of(line: dict[str, Any], chat: bool, where: str) -> Prompt:
    if "messages" in line:
        if not chat:
            raise UserError(f"{where} holds 'messages'; use --chat")
        return parse_messages(line["messages"], where)
    if "prompt" not in line:
        raise UserError(f"{where} has no 'prompt', only {', '.join(map(repr, line)) or 'nothing'}")
    prompt = line["prompt"]
    if isinstance(prompt, str):
        return user_message(prompt) if chat else prompt
    if not isinstance(prompt, list) or not all(type(token) is int for token in prompt):
        raise UserError(f"{where}: 'prompt' must be text or a list of token ids")
    if chat:
        raise UserError(f"{where}: with --chat, 'prompt' must be text, not token ids")
    return prompt


def encode(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a prompt; messages go through the model's chat template.

    Raises:
        RequestError: the model has no chat template, or it refuses the messages.
    """
    if isinstance(prompt, list):
        return prompt
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    # The template writes the special tokens itself.
    return tokenizer.encode(tokenizer.apply_chat_template(prompt), add_special_tokens=False)
