"""Text to token ids and back, and conversations to text."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fjx.errors import ModelError, RequestError
from fjx.models.chat_template import CHATML, ChatTemplate, request_template
from fjx.models.gguf_tokenizer import definition_from_gguf
from fjx.models.hf_tokenizer import definition_from_folder
from fjx.models.loading.gguf_metadata import read_gguf_header
from fjx.models.loading.source import ModelSource
from fjx.models.token_pieces import spelling_of
from fjx.models.tokenizer_definition import TokenizerDefinition

_SHORT_TEXT = 4_000
"""Characters that are encoded in about a millisecond."""


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """The tokenizer that belongs to a model.

    Raises:
        ModelError: tokenizer files are missing, broken or of an unsupported kind.
    """
    try:
        if source.kind == "gguf":
            return Tokenizer(definition_from_gguf(read_gguf_header(source.path).metadata))
        return Tokenizer(definition_from_folder(source.path))
    except ModelError as error:
        message = str(error)
        if str(source.path) in message:
            raise
        raise ModelError(f"{source.path}: {message}") from error


class Tokenizer:
    """A model's vocabulary, special tokens and chat template. Safe to use from several threads."""

    def __init__(self, definition: TokenizerDefinition) -> None:
        self._definition = definition
        self._backend = definition.backend
        self._spelling = spelling_of(definition.backend.decoder)
        added = definition.backend.get_added_tokens_decoder()
        self._special_ids = frozenset(id for id, token in added.items() if token.special)
        self._bytes: dict[int, bytes] = {}
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = definition.bos_token_id
        self.eos_token_ids = definition.eos_token_ids

    @cached_property
    def chat_template(self) -> str | None:
        """The model's chat template; ChatML if it has none but knows ``<|im_start|>``."""
        if self._definition.chat_template is not None:
            return self._definition.chat_template
        return CHATML if self._backend.token_to_id("<|im_start|>") is not None else None

    @property
    def tool_template(self) -> str | None:
        """The template for conversations with tools: that named ``tool_use``, if there is one."""
        return self._definition.named_templates.get("tool_use", self.chat_template)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Special tokens written in the text become their ids.

        Args:
            text: any text without lone surrogates.
            add_special_tokens: add what the model expects around a text, such as its
                beginning-of-sequence token. Leave it off for a rendered chat template.

        Raises:
            RequestError: the text holds a lone surrogate.
        """
        try:
            ids = self._ids(text)
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError("the text is not valid Unicode (it has a lone surrogate)") from error
        if not add_special_tokens:
            return ids
        return [*self._definition.prefix, *ids, *self._definition.suffix]

    def _ids(self, text: str) -> list[int]:
        if len(text) <= _SHORT_TEXT:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
            return ids
        # Only the encoder of batches lets other threads run while it works.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        ids = encoding.ids
        return ids

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, continuation: bool = False
    ) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: ids outside of the vocabulary spell nothing.
            skip_special_tokens: leave special tokens out.
            continuation: the ids follow others, so a leading space belongs to the text.
        """
        stream = self.stream(skip_special_tokens, continuation)
        return stream.add(ids) + stream.flush()

    def stream(self, skip_special_tokens: bool = True, continuation: bool = False) -> DecodeStream:
        """A decoder for ids that come in pieces; arguments as in ``decode``."""
        strip = self._spelling.strips_leading_space and not continuation
        return DecodeStream(self, skip_special_tokens, strip)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to a text, which may be part of a character."""
        known = self._bytes.get(id)
        if known is None:
            inside = 0 <= id < self.vocab_size
            piece = self._backend.id_to_token(int(id)) if inside else None
            known = self._spelling.to_bytes(piece) if piece is not None else b""
            self._bytes[id] = known
        return known

    def token_text(self, id: int) -> str:
        """A token alone as text; U+FFFD stands for parts of characters."""
        return self.token_bytes(id).decode(errors="replace")

    def is_special(self, id: int) -> bool:
        """Whether ``skip_special_tokens`` leaves this token out."""
        return id in self._special_ids

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation, special tokens included.

        Encode it with ``add_special_tokens=False``.

        Args:
            messages: each with "role" and "content", and whatever else the template knows: all
                fields that are not null reach it.
            add_generation_prompt: end with the beginning of the assistant's answer.
            continue_final_message: end within the last message instead, so that the model goes on
                with it; the name of a field: with this one instead of "content".
            chat_template: Jinja's text instead of the model's template, or the name of one of the
                model's.
            variables: passed on to the template, such as ``tools`` and ``documents``.

        Raises:
            RequestError: there is no chat template, it refuses the messages or takes too much, or
                arguments contradict each other.
        """
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message goes on with the last message, add_generation_prompt "
                "begins another one; switch one of them off"
            )
        if "messages" in variables:
            raise RequestError("a chat template's argument cannot be named 'messages'")
        template = self._template(chat_template, with_tools=variables.get("tools") is not None)
        given = {**self._definition.special_tokens, **variables}
        given["add_generation_prompt"] = add_generation_prompt
        return template.render(messages, given, continue_final_message)

    def _template(self, asked: str | None, with_tools: bool) -> ChatTemplate:
        named = self._named_templates
        if asked is not None:
            return named[asked] if asked in named else request_template(asked)
        found = named.get("tool_use" if with_tools else "default") or named.get("default")
        if found is None:
            raise RequestError("the model has no chat template; use plain completions")
        return found

    @cached_property
    def _named_templates(self) -> dict[str, ChatTemplate]:
        sources = dict(self._definition.named_templates)
        if self.chat_template is not None:
            sources["default"] = self.chat_template
        return {name: ChatTemplate(source) for name, source in sources.items()}

    def save(self, folder: Path) -> None:
        """Write the tokenizer as Hugging Face files, from which ``load_tokenizer`` restores it.

        Raises:
            OSError: the folder is missing or cannot be written.
        """
        definition = self._definition
        config: dict[str, Any] = {
            **definition.special_tokens,
            "add_bos_token": definition.bos_token_id in definition.prefix,
            "add_eos_token": any(id in definition.suffix for id in definition.eos_token_ids[:1]),
            "clean_up_tokenization_spaces": False,
        }
        if definition.named_templates:
            named = {**definition.named_templates, "default": definition.chat_template}
            config["chat_template"] = [
                {"name": name, "template": source} for name, source in named.items() if source
            ]
        elif definition.chat_template is not None:
            config["chat_template"] = definition.chat_template
        generation = {
            "bos_token_id": definition.bos_token_id,
            "eos_token_id": list(definition.eos_token_ids),
        }
        files = {
            "tokenizer.json": definition.backend.to_str(),
            "tokenizer_config.json": _pretty(config),
            "generation_config.json": _pretty(generation),
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")


class DecodeStream:
    """Decodes ids that come in pieces, in constant time a token.

    What it gives is final: a character is held back until all of its bytes are there. The pieces
    together are exactly what ``Tokenizer.decode`` gives for all ids at once.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool, strip_leading_space: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._strip_leading_space = strip_leading_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, ids: Sequence[int]) -> str:
        """The text that these ids complete; may be empty."""
        tokenizer = self._tokenizer
        data = b"".join(
            tokenizer.token_bytes(id)
            for id in ids
            if not (self._skip_special_tokens and tokenizer.is_special(id))
        )
        if self._strip_leading_space and data:
            self._strip_leading_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)


def _pretty(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
