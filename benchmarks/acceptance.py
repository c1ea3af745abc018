"""How often a draft head's first token is right, beside what rejection sampling could accept.

    python benchmarks/acceptance.py --output FILE.json

The target answers real prompts at several temperatures. Then both models' distributions of every
output token are computed, p of the target and q of the head, which sees the target's hidden state
one token earlier, and for each temperature:

- *rejection*: what rejection sampling (Leviathan et al. 2023) accepts, ``sum(min(p, q))``, the most
  that any scheme can which does not know the noise of both;
- *coupled*: what fjx accepts: how often both choose the same token by the same noise;
- *bound*: what coupling by Gumbel noise accepts at least, ``r / (2 - r)`` for a rejection of r
  (Daliri et al. 2024);
- *greedy draft*: ``p[argmax(q)]``, what is accepted of drafts without noise;
- *in the vocabulary*: how many of the tokens the head can draft at all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from prompts import sample_prompts
from report import about_this_run, write
from tqdm import tqdm

from fjx import LLM, SamplingParams
from fjx.distill.config import DistillConfig
from fjx.distill.corpus import TargetSample
from fjx.distill.target import DistillTarget, open_target, whole_requests
from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.token_rule import gumbel
from fjx.models.draft_head import DraftHead
from fjx.models.loading.draft_head_file import built_in_draft_head, load_draft_head
from fjx.models.reduced_head import ReducedHead

ROOT = Path(__file__).resolve().parents[1]
_ROWS = 128
"""Output tokens whose distributions are compared at once."""
_PAGE = 16


class Pair:
    """A target and its draft head, run over whole texts."""

    def __init__(self, target: DistillTarget, head: Path) -> None:
        loaded = load_draft_head(head)
        config = target.config
        self.target = target
        self.maps = loaded.maps
        self.head = DraftHead(config, loaded.token_ids)
        self.whole = ReducedHead(config, np.arange(config.vocab_size, dtype=np.int32))
        self._feed_params = self.head.pack_feed(
            self._stored(loaded.tensors, self.head.trained_tensors())
        )
        self._feed = jax.jit(self._estimates)
        of_head, of_whole = (target.logit_params(each) for each in (self.head, self.whole))
        self.q_logits = jax.jit(lambda h: self.head.logits(of_head, h))
        self.p_logits = jax.jit(lambda x: self.whole.logits(of_whole, x))

    def rows_of(self, samples: list[TargetSample]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The target's residual stream x and the head's estimate of it, at the rows that chose the
        samples' output tokens, from the second one on."""
        done = 0
        for lengths, (x,) in self.target.passes(samples, [self.target.config.num_layers]):
            batch = samples[done : done + len(lengths)]
            done += len(lengths)
            estimates = self._estimate(batch, lengths, x)
            row = 0
            for sample, length in zip(batch, lengths, strict=True):
                # The head's row t estimates x of row t + 1, which chose token t + 2.
                rows = np.arange(row + sample.prompt_length - 1, row + length - 2)
                yield x[rows + 1], estimates[rows]
                row += length

    def _estimate(self, batch: list[TargetSample], lengths: list[int], x: np.ndarray) -> np.ndarray:
        size = 1 << (len(x) - 1).bit_length()
        padded, following = np.zeros((size, x.shape[1]), np.float32), np.zeros(size, np.int32)
        padded[: len(x)] = x
        tokens = np.concatenate([sample.tokens for sample in batch])
        following[: len(x) - 1] = tokens[1:]
        rows = whole_requests(lengths, size, max(lengths))
        return np.asarray(
            self._feed(self._feed_params, self.target.embed_params, padded, following, rows)
        )

    def _estimates(self, params: Any, embed: Any, x: Any, following: Any, rows: Any) -> Any:
        config = self.target.config
        shape = kv_pages_shape(
            1, int(rows.page_table.size), _PAGE, config.num_kv_heads, config.head_dim
        )
        pages = jnp.zeros(shape, kv_storage_dtype(self.target.dtype))
        return self.head.feed(params, x, self.target.embed(embed, following, rows), pages, rows)[0]

    def _stored(self, tensors: Any, specs: Any) -> dict[str, Any]:
        return {
            name: jnp.asarray(specs[name].store(values, self.target.dtype))
            for name, values in tensors.items()
        }


def figures(pair: Pair, temperature: float) -> Callable[..., dict[str, Any]]:
    """A program: sums of the four acceptances over some rows."""
    ids = jnp.asarray(pair.head.token_ids)
    every = jnp.arange(pair.target.config.vocab_size, dtype=jnp.int32)

    def of_rows(p: Any, q: Any, seeds: Any, positions: Any, used: Any) -> dict[str, Any]:
        if not temperature:
            agree = jnp.argmax(p, axis=1) == ids[jnp.argmax(q, axis=1)]
            return {"coupled": jnp.sum(agree * used)}
        p, q = p / temperature, q / temperature
        mass = jax.nn.softmax(p, axis=1)
        common = jnp.sum(jnp.minimum(mass[:, ids], jax.nn.softmax(q, axis=1)), axis=1)
        mine = jnp.argmax(p + gumbel(seeds, positions, every), axis=1)
        drafted = ids[jnp.argmax(q + gumbel(seeds, positions, ids), axis=1)]
        likeliest = jnp.take_along_axis(mass, ids[jnp.argmax(q, axis=1)][:, None], axis=1)[:, 0]
        return {
            "rejection": jnp.sum(common * used),
            "coupled": jnp.sum((mine == drafted) * used),
            "bound": jnp.sum(common / (2 - common) * used),
            "greedy_draft": jnp.sum(likeliest * used),
        }

    return jax.jit(of_rows)


def compare(pair: Pair, samples: list[TargetSample], temperature: float) -> dict[str, Any]:
    """Mean acceptances over all output tokens but each one's first."""
    run, draw = figures(pair, temperature), np.random.default_rng(0)
    sums: dict[str, float] = {}
    count = 0
    for x, estimates in tqdm(pair.rows_of(samples), total=len(samples), unit="output"):
        for begin in range(0, len(x), _ROWS):
            part = slice(begin, begin + _ROWS)
            size = len(x[part])
            padding = ((0, _ROWS - size), (0, 0))
            seeds = draw.integers(2**32, size=(_ROWS, 2), dtype=np.uint32)
            found = run(
                pair.p_logits(np.pad(x[part], padding)),
                pair.q_logits(np.pad(estimates[part], padding)),
                seeds,
                np.arange(_ROWS, dtype=np.int32),
                np.arange(_ROWS) < size,
            )
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            count += size
    tokens = np.concatenate([sample.tokens[sample.prompt_length + 1 :] for sample in samples])
    sums["in_the_vocabulary"] = float(np.isin(tokens, pair.head.token_ids).sum())
    return {"tokens": count} | {name: round(value / count, 4) for name, value in sums.items()}


def head_of(options: argparse.Namespace) -> Path:
    """The file of the head that is asked for."""
    head = options.head or built_in_draft_head(options.model)
    if head is None:
        raise SystemExit(f"no draft head for {options.model}; give one with --head")
    return head


def open_pair(options: argparse.Namespace) -> Pair:
    """Load the target and its head."""
    config = DistillConfig(model=options.model, output=Path("unused.safetensors"))
    return Pair(open_target(config), head_of(options))


def answers(
    options: argparse.Namespace, temperatures: Sequence[float]
) -> dict[float, list[TargetSample]]:
    """The target's answers to real prompts, by temperature."""
    llm = LLM(options.model, max_model_len=1024)
    texts = sample_prompts(options.prompts, options.count, options.seed)
    chats = [[{"role": "user", "content": text}] for text in texts]
    found: dict[float, list[TargetSample]] = {}
    for temperature in temperatures:
        params = [
            SamplingParams(temperature=temperature, max_tokens=options.max_tokens, seed=i)
            for i in range(len(chats))
        ]
        outputs = llm.chat(chats, params)
        found[temperature] = [
            TargetSample(
                np.array([*output.prompt_token_ids, *output.outputs[0].token_ids]),
                len(output.prompt_token_ids),
                "",
                temperature,
                held_out=True,
            )
            for output in outputs
        ]
    llm.shutdown()
    return found


def main() -> None:
    """Measure and print."""
    options = parse_options()
    head_of(options)  # or it ends here, before the long work
    found = answers(options, options.temperatures)
    pair = open_pair(options)
    result = {
        "about": about_this_run(),
        "model": options.model,
        "prompts": options.count,
        "temperatures": {t: compare(pair, samples, t) for t, samples in found.items()},
    }
    write(options.output, result)
    print(json.dumps(result["temperatures"], indent=2))


def common_options(description: str, count: int) -> argparse.ArgumentParser:
    """Those of every script that looks at a target, its head and their answers."""
    parser = argparse.ArgumentParser(description=description)
    add: Callable[..., Any] = parser.add_argument
    add("--model", default="smollm2-135m")
    add("--head", type=Path, help="a draft head's file [the one that comes with fjx]")
    add("--count", type=int, default=count, help=f"prompts [{count}]")
    add("--max-tokens", type=int, default=96)
    add("--prompts", type=Path, default=ROOT / ".." / "shared" / "data" / "prompts")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="also write the result to this file")
    return parser


def parse_options() -> argparse.Namespace:
    parser = common_options(__doc__.splitlines()[0], count=60)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    return parser.parse_args()


if __name__ == "__main__":
    main()
