"""What PyTorch and Transformers take for the same work, on the same GPU in the same run.

Attention: PyTorch's `scaled_dot_product_attention` with its FlashAttention and its cuDNN, on the
loads of `attention`. Its keys and values lie side by side; rows that are not the whole context see
all of it, in which the cuDNN of `attention` does the same.

Whole steps: Transformers' Llama with random weights, a static cache and
``torch.compile(mode="reduce-overhead")``, which records CUDA graphs; its cache has room for the
context and the measured steps, no more.

All times are between CUDA events, which the GPU writes down itself, the median of many. JAX has
none: there the time of many calls is divided by their number, see `timing`. Nothing here touches
JAX, whose process would hold most of the GPU's memory.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from itertools import pairwise
from statistics import median
from typing import Any

from tqdm import tqdm

from .models import DECODING, MODELS, PREFILL, VERIFICATION, Load, Sizes

_MODEL = MODELS["Llama 3.1 8B"]
_WARM, _REPEATS = 3, 20


def lowered() -> Iterator[tuple[str, Callable[[], object]]]:
    """Nothing here is fjx's."""
    yield from ()


def checks() -> dict[str, Callable[[], Any]]:
    """Each says so where what it needs is not installed."""
    loads = {"decoding": DECODING, "verification": VERIFICATION, "prefill": PREFILL}
    found = {name: _needs(partial(attention, each), "torch") for name, each in loads.items()}
    for requests in (1, 8, 64):
        step = partial(llama, requests)
        found[f"llama-{requests}"] = _needs(step, "torch", "transformers")
    return found


def _needs(check: Callable[[], Any], *packages: str) -> Callable[[], Any]:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        return lambda: {"skipped": f"not installed: {', '.join(missing)}"}
    return check


def attention(loads: tuple[Load, ...]) -> Iterator[dict[str, Any]]:
    """Microseconds of each load."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    for load in tqdm(loads, unit="load"):
        q, k, v = _tensors(_MODEL, load)
        found: dict[str, Any] = {**asdict(load), "torch": torch.__version__}
        attend = partial(
            scaled_dot_product_attention,
            q,
            k,
            v,
            is_causal=load.rows == load.context,
            scale=_MODEL.head_dim**-0.5,
            enable_gqa=True,
        )
        backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
        for name, backend in backends.items():
            try:
                with sdpa_kernel(backend):
                    found[name] = {"microseconds": 1e3 * _milliseconds(attend, _REPEATS)}
            except RuntimeError as error:  # a backend says so what it does not take
                found[name] = {"error": str(error)}
        yield found


def _tensors(model: Sizes, load: Load) -> tuple[Any, ...]:
    import torch

    def draw(heads: int, length: int) -> Any:
        shape = (load.requests, heads, length, model.head_dim)
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    return (
        draw(model.heads, load.rows),
        draw(model.kv_heads, load.context),
        draw(model.kv_heads, load.context),
    )


def llama(
    requests: int, sizes: Sizes = _MODEL, context: int = 1024, device: str = "cuda"
) -> dict[str, Any]:
    """Milliseconds of a decoding step of so many requests of so many tokens."""
    import torch
    import transformers

    model = _llama(sizes, device)
    room = context + 2 * _WARM + _REPEATS
    tokens = torch.randint(sizes.vocabulary, (requests, context), device=device)
    with torch.inference_mode():
        kept = transformers.StaticCache(config=model.config, max_cache_len=room)
        logits = model(tokens, past_key_values=kept, use_cache=True, logits_to_keep=1).logits
        last = logits.argmax(-1)
        torch.compiler.reset()  # or it would compile for any number of requests
        compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True, dynamic=False)

        def step() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            logits = compiled(last, past_key_values=kept, use_cache=True).logits
            last.copy_(logits.argmax(-1))

        for _ in range(_WARM):
            step()
        milliseconds = _milliseconds(step, _REPEATS)
    return {
        "requests": requests,
        "context": context,
        "step_milliseconds": milliseconds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@cache
def _llama(sizes: Sizes, device: str) -> Any:
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**sizes.hf_config())
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()


def _milliseconds(run: Callable[[], Any], repeats: int) -> float:
    """The median of so many calls that are sent without waiting, by the GPU's clock."""
    import torch

    for _ in range(_WARM):
        run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return median(before.elapsed_time(after) for before, after in pairwise(events))
