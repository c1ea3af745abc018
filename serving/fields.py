"""What becomes of fields that are not served: harmless ones are ignored, the others refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fjx.serving.errors import ApiError, invalid, nearest
from fjx.wording import shortened

IGNORED = {
    "cache_prompt": "prefixes are always cached; that changes no token",
    "id_slot": "requests run where there is room",
    "include_obfuscation": "chunks are not padded",
    "metadata": "it labels stored answers, and none are stored",
    "parallel_tool_calls": "no tools are called",
    "prediction": "drafts are made by the server; that changes no token",
    "prompt_cache_key": "there is one cache; cache_salt keeps requests apart",
    "prompt_cache_retention": "what is cached stays until the memory is needed",
    "return_progress": "chunks begin with the first token; see stream_options",
    "safety_identifier": "it names the end user",
    "service_tier": "there is one tier; see priority",
    "store": "answers are not stored",
    "timings_per_token": "times are in /metrics and in the client's hands",
    "user": "it names the end user",
}
"""Fields that change no token of an answer, and why."""


@dataclass(frozen=True)
class Refused:
    """A field of other servers that would change the answer."""

    why: str
    neutral: tuple[Any, ...] = (None, False, [], {}, "")
    """Values that ask for nothing."""


_OFF: tuple[Any, ...] = (None, False, [], {}, "")
_GRAMMAR = "answers are not constrained"
_SAMPLER = "it is none of the samplers of this server"
_TOOLS = "tools are not called"
_TEXT = "it reads and writes text alone"
_BEAMS = "there is no beam search"
_REPETITION = "repetition does not end an answer; see the penalties"

REFUSED = {
    "audio": Refused(_TEXT),
    "bad_words_ids": Refused("forbid words as text, by bad_words"),
    "chat_template": Refused("a template of a request is not run, only the model's own"),
    "custom_logit_processor": Refused("requests bring no code"),
    "detokenize": Refused("the text is always there; see return_token_ids", (None, True)),
    "dry_multiplier": Refused(_SAMPLER),
    "dynatemp_range": Refused(_SAMPLER),
    "ebnf": Refused(_GRAMMAR),
    "function_call": Refused(_TOOLS, (*_OFF, "none", "auto")),
    "functions": Refused(_TOOLS),
    "grammar": Refused(_GRAMMAR),
    "guided_choice": Refused(_GRAMMAR),
    "guided_decoding_backend": Refused(_GRAMMAR),
    "guided_grammar": Refused(_GRAMMAR),
    "guided_json": Refused(_GRAMMAR),
    "guided_regex": Refused(_GRAMMAR),
    "guided_whitespace_pattern": Refused(_GRAMMAR),
    "include_reasoning": Refused("reasoning is part of the content", (None, True)),
    "json_schema": Refused(_GRAMMAR),
    "kv_transfer_params": Refused("keys and values stay in this server"),
    "length_penalty": Refused(_BEAMS, (None, 1.0)),
    "logits_processors": Refused("requests bring no code"),
    "logprob_token_ids": Refused("log-probabilities are those of the likeliest tokens"),
    "lora_path": Refused("there are no adapters"),
    "max_repetition_pattern_size": Refused(_REPETITION),
    "media_io_kwargs": Refused(_TEXT),
    "min_repetition_pattern_size": Refused(_REPETITION),
    "mirostat": Refused(_SAMPLER),
    "mirostat_eta": Refused(_SAMPLER, (None, 0.1)),
    "mirostat_tau": Refused(_SAMPLER, (None, 5.0)),
    "mm_processor_kwargs": Refused(_TEXT),
    "modalities": Refused(_TEXT, (*_OFF, ["text"])),
    "prompt_embeds": Refused("a prompt is text or token ids"),
    "regex": Refused(_GRAMMAR),
    "repetition_detection": Refused(_REPETITION),
    "repetition_min_count": Refused(_REPETITION),
    "response_format": Refused(_GRAMMAR, (*_OFF, {"type": "text"})),
    "return_hidden_states": Refused("hidden states are not shown"),
    "spaces_between_special_tokens": Refused("a text has what its tokens spell", (None, True)),
    "stop_regex": Refused("stop takes texts"),
    "structural_tag": Refused(_GRAMMAR),
    "structured_outputs": Refused(_GRAMMAR),
    "suffix": Refused("a prompt is continued; gaps are not filled"),
    "tfs_z": Refused(_SAMPLER, (None, 1.0)),
    "thinking_token_budget": Refused("reasoning has no budget of its own; see max_tokens"),
    "top_a": Refused(_SAMPLER),
    "top_n_sigma": Refused(_SAMPLER, (None, -1.0)),
    "typical_p": Refused(_SAMPLER, (None, 1.0)),
    "use_beam_search": Refused(_BEAMS),
    "verbosity": Refused("say in the prompt how long an answer shall be", (None, "medium")),
    "vllm_xargs": Refused("there are no extensions"),
    "web_search_options": Refused("nothing is looked up"),
    "xtc_probability": Refused(_SAMPLER),
}
"""Fields that would change the answer, why they are not served, and the values that do not."""

OTHER_NAMES = {
    "enable_thinking": "chat_template_kwargs",
    "input": "prompt",
    "max_completion_tokens": "max_tokens",
    "max_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "messages": "prompt",
    "min_new_tokens": "min_tokens",
    "n_predict": "max_tokens",
    "n_probs": "logprobs",
    "no_stop_trim": "include_stop_str_in_output",
    "num_predict": "max_tokens",
    "prefix": "continue_final_message",
    "prompt": "messages",
    "repeat_penalty": "repetition_penalty",
    "rid": "request_id",
    "sampling_seed": "seed",
    "stop_sequences": "stop",
    "top_logprobs": "logprobs",
}
"""What other servers, or other endpoints, call fields that are served here."""


def check_fields(extra: Mapping[str, Any] | None, served: Iterable[str], path: str = "") -> None:
    """Raise a 400 for the first field that is neither served nor harmless.

    Args:
        extra: the fields that are not served, with their values.
        served: the names of those that are.
        path: what stands before the name in a message, such as ``stream_options.``.
    """
    for name, value in (extra or {}).items():
        if name in IGNORED:
            continue
        if name not in REFUSED:
            raise unknown_field(name, served, path)
        if value not in REFUSED[name].neutral:
            raise unsupported(name, f"{path}{name}", REFUSED[name].why)


def unknown_field(name: str, served: Iterable[str], path: str = "") -> ApiError:
    """A 400 for a field that means nothing here; it names the nearest one that does."""
    served = sorted(served)
    shown = shortened(name)
    other = OTHER_NAMES.get(name)
    if other in served:
        mend = f"it is called {other!r} here"
    elif near := nearest(name, served):
        mend = f"did you mean {near!r}?"
    else:
        mend = f"the nearest one is {nearest(name, served, least=0.0)!r}"
    return invalid(f"unknown field {path + shown!r}; {mend}", path + shown, "unknown_parameter")


def unsupported(what: str, param: str, why: str) -> ApiError:
    """A 400 for what this server does not do."""
    return invalid(
        f"{what} is not supported by this server: {why}", param, code="unsupported_parameter"
    )
