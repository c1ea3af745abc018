"""Tokenizers of Hugging Face folders: tokenizer.json and the files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from fjx.errors import ModelError
from fjx.models.end_tokens import end_token_ids
from fjx.models.hf_added_tokens import add_tokens, special_settings
from fjx.models.tokenizer_definition import TokenizerDefinition

SPECIAL_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


def definition_from_folder(folder: Path) -> TokenizerDefinition:
    """Read the tokenizer of a Hugging Face folder.

    Raises:
        ModelError: tokenizer.json is missing, or one of the files is broken; the message names it.
    """
    backend = _read_backend(folder / "tokenizer.json")
    config = _read_json(folder / "tokenizer_config.json")
    settings = special_settings(config, _read_json(folder / "special_tokens_map.json"))
    add_tokens(backend, settings, _read_json(folder / "added_tokens.json"))
    special_tokens = _special_tokens(settings)
    model_config = _read_json(folder / "config.json")
    model_config = (model_config.get("text_config") or {}) | model_config
    generation_config = _read_json(folder / "generation_config.json")

    bos = _id_of(backend, special_tokens.get("bos_token"))
    if bos is None:
        bos = next(iter(_ids(generation_config, "bos_token_id")), None)
    eos = _id_of(backend, special_tokens.get("eos_token"))
    named = generation_config if "eos_token_id" in generation_config else model_config
    ends = [] if eos is None else [eos]
    ends += _ids(named, "eos_token_id") + _ends_by_text(backend)
    prefix, suffix = _added_around(backend)
    if (add_bos := config.get("add_bos_token")) is not None and bos is not None:
        others = tuple(id for id in prefix if id != bos)
        prefix = (bos, *others) if add_bos else others
    if (add_eos := config.get("add_eos_token")) is not None and eos is not None:
        others = tuple(id for id in suffix if id != eos)
        suffix = (*others, eos) if add_eos else others
    templates = _chat_templates(folder, config)
    return TokenizerDefinition(
        backend=backend,
        bos_token_id=bos,
        eos_token_ids=tuple(dict.fromkeys(ends)),  # each once, in order
        prefix=prefix,
        suffix=suffix,
        chat_template=templates.pop("default", None),
        named_templates=templates,
        special_tokens=special_tokens,
    )


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelError(
            f"{path}: missing; save the tokenizer beside the model with Transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare exceptions
        raise ModelError(f"{path}: not a valid tokenizer file: {error}") from error
    # Left over from training; prompts are never cut or padded here.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return content


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Tokens by role; they are written as text, or as an object with "content"."""
    tokens = {}
    for role in SPECIAL_ROLES:
        value = config.get(role)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[role] = content
    return tokens


def _id_of(backend: tokenizers.Tokenizer, token: str | None) -> int | None:
    id: int | None = backend.token_to_id(token) if token is not None else None
    return id


def _ids(config: Mapping[str, Any], key: str) -> list[int]:
    """The files give one id, a list of ids, or null; -1 stands for none."""
    value = config.get(key)
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if not all(type(id) is int for id in ids):
        raise ModelError(f"{key} should be a token id or a list of them, but is {value!r}")
    return [id for id in ids if id >= 0]


def _ends_by_text(backend: tokenizers.Tokenizer) -> list[int]:
    """End tokens among those that stand beside the vocabulary, as of a GGUF file."""
    added = backend.get_added_tokens_decoder()
    ids = {token.content: id for id, token in added.items()}
    return list(end_token_ids(ids, [id for id, token in added.items() if token.special]))


def _added_around(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer's post-processor puts before and after a text."""
    if backend.post_processor is None:
        return (), ()
    encoding = backend.encode("a", add_special_tokens=True)
    mask: list[int] = encoding.special_tokens_mask
    text = [position for position, special in enumerate(mask) if not special]
    if not text:
        return tuple(encoding.ids), ()
    return tuple(encoding.ids[: text[0]]), tuple(encoding.ids[text[-1] + 1 :])


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; files count more than the settings."""
    given = config.get("chat_template")
    if given is None:
        named = {}
    elif isinstance(given, list):
        try:
            named = {entry["name"]: entry["template"] for entry in given}
        except (KeyError, TypeError):
            named = {"default": None}  # refused below
    else:
        named = {"default": given}
    if not all(isinstance(source, str) for source in named.values()):
        raise ModelError(f"{folder / 'tokenizer_config.json'}: chat_template is not text")
    file = folder / "chat_template.jinja"
    if file.is_file():
        named = {"default": file.read_text(encoding="utf-8")}
    for other in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[other.stem] = other.read_text(encoding="utf-8")
    return named
