"""Make the golden continuations of tests/accuracy/test_smollm2.py with Hugging Face Transformers.

First the prompts, with fjx's own environment: 50 real ones from a folder with the files that
benchmarks/prompts.py names, of which only token ids are stored. Then Transformers' continuations,
in an environment of their own, as fjx depends on neither torch nor Transformers:

    .venv/bin/python scripts/make_smollm2_goldens.py prompts FOLDER

    python -m venv goldens-env
    goldens-env/bin/pip install torch==2.13.0 "transformers>=5,<6" gguf
    goldens-env/bin/python scripts/make_smollm2_goldens.py continuations MODEL.gguf

The first command prints where the model file is. The weights are read here without fjx's loader, so
that the test checks the loader as well.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "accuracy" / "goldens" / "smollm2_continuations.json.gz"
PROMPTS, SEED, NEW_TOKENS = 50, 2, 32
BATCH = 10

BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("prompts").add_argument("folder", type=Path)
    stages.add_parser("continuations").add_argument("gguf", type=Path)
    arguments = parser.parse_args()
    if arguments.stage == "prompts":
        write({"cases": tokenized_prompts(arguments.folder)})
    else:
        write(continued(read(), arguments.gguf))


def read() -> dict[str, Any]:
    golden: dict[str, Any] = json.loads(gzip.decompress(GOLDEN.read_bytes()))
    return golden


def write(golden: dict[str, Any]) -> None:
    text = json.dumps(golden, separators=(",", ":"))
    GOLDEN.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{GOLDEN.name}: {len(golden['cases'])} prompts, {GOLDEN.stat().st_size:,} bytes")


def tokenized_prompts(folder: Path) -> list[dict[str, Any]]:
    from fjx.models.loading.source import resolve
    from fjx.models.tokenizer import load_tokenizer

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from prompts import sample_prompts

    source = resolve("smollm2-135m")
    print(f"model: {source.path}")
    tokenizer = load_tokenizer(source)
    return [{"prompt": tokenizer.encode(text)} for text in sample_prompts(folder, PROMPTS, SEED)]


def continued(golden: dict[str, Any], path: Path) -> dict[str, Any]:
    import torch
    import transformers
    from gguf import GGUFReader

    model = load_model(GGUFReader(path))
    cases = golden["cases"]
    for begin in range(0, len(cases), BATCH):
        some = cases[begin : begin + BATCH]
        with torch.inference_mode():
            continue_greedily(model, some)
        print(f"{begin + len(some)} of {len(cases)} prompts", file=sys.stderr, flush=True)
    return {
        "model": path.name,
        "dtype": "float32",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        **golden,
    }


def continue_greedily(model: LlamaForCausalLM, cases: list[dict[str, Any]]) -> None:
    """Add to each case the best token at each position, its log-probability, the second best, and
    how far that one is behind.
    """
    import torch

    longest = max(len(case["prompt"]) for case in cases)
    padding = [longest - len(case["prompt"]) for case in cases]
    new = torch.tensor(
        [[0] * pad + case["prompt"] for pad, case in zip(padding, cases, strict=True)]
    )
    mask = (torch.arange(longest)[None] >= torch.tensor(padding)[:, None]).long()
    past = None
    for case in cases:
        case |= {"tokens": [], "logprobs": [], "second": [], "gaps": []}
    for _ in range(NEW_TOKENS):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        output = model(
            new, attention_mask=mask, position_ids=positions, past_key_values=past, logits_to_keep=1
        )
        past = output.past_key_values
        logits = output.logits[:, -1]
        best, total = logits.topk(2), logits.logsumexp(1)
        for row, case in enumerate(cases):
            first, second = best.values[row].tolist()
            case["tokens"].append(int(best.indices[row, 0]))
            case["second"].append(int(best.indices[row, 1]))
            case["logprobs"].append(round(first - float(total[row]), 5))
            case["gaps"].append(round(first - second, 5))
        new = best.indices[:, :1]
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)


def load_model(reader: GGUFReader) -> LlamaForCausalLM:
    """The model with dequantized weights, in float32."""
    import torch
    import transformers

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    config = transformers.LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.float32).eval()
    missing, unexpected = model.load_state_dict(state_dict(reader, config), strict=False)
    if set(missing) != {"lm_head.weight"} or unexpected:
        raise SystemExit(f"tensors missing: {missing}; not known: {unexpected}")
    model.tie_weights()
    return model


def state_dict(reader: GGUFReader, config: Any) -> dict[str, torch.Tensor]:
    import torch
    from gguf.quants import dequantize

    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if tensor.name in OTHER_NAMES:
            state[OTHER_NAMES[tensor.name]] = weight
            continue
        _, layer, kind, _ = tensor.name.split(".")
        if kind == "attn_q":
            weight = halves_apart(weight, config.num_attention_heads)
        elif kind == "attn_k":
            weight = halves_apart(weight, config.num_key_value_heads)
        state[f"model.layers.{layer}.{BLOCK_NAMES[kind]}.weight"] = weight
    return state


def halves_apart(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """From GGUF's rows, where RoPE turns neighbours, to Transformers', where it turns halves."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


if __name__ == "__main__":
    main()
