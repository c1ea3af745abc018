"""Tokens that end a text or a turn, told by how they are written.

Files name only some of them: a GGUF file one, a Hugging Face folder those that its authors thought
of. Source: what llama.cpp's ``llama-vocab.cpp`` counts as the end of a generation. Both formats use
this list, so that a model ends alike as either.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

END_TOKENS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001 - DeepSeek writes it so
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "[e~[",
    # What a model of code writes between files, or where a middle was filled in.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
)
END_OF_SENTENCE = "</s>"
"""An end only where it is a control token: elsewhere it closes HTML's strikethrough (Gemma)."""
_MESSAGE_END = "<|end|>"


def end_token_ids(ids: Mapping[str, int], control: Collection[int]) -> tuple[int, ...]:
    """The ids of the end tokens among these tokens, the usual ones first.

    Args:
        ids: id by token.
        control: ids that the files mark as control tokens.
    """
    found = {token: ids[token] for token in END_TOKENS if token in ids}
    sentence = ids.get(END_OF_SENTENCE)
    if sentence is not None and sentence in control and "<|tool_response>" not in ids:
        found[END_OF_SENTENCE] = sentence
    # Formats with several messages a turn end each with <|end|>, and the turn otherwise.
    calls = "<|call|>" in found or "<|calls|>" in found
    if calls and ("<|return|>" in found or "<|flush|>" in found):
        found.pop(_MESSAGE_END, None)
    return tuple(found.values())
