"""What a look between two stages knows about drafted tokens that their drafter did not know.

    python benchmarks/lens.py --output FILE.json

The target answers real prompts greedily, its draft head proposes every output token one token
earlier, and each proposal is right or wrong. A *score* orders them: the drafter's confidence, or
the logit lens at some layer: the residual stream there through the final norm and the head's
columns of the unembedding, as it is or after a linear map to the last layer's (fitted on half of
the prompts, with a ridge; the other half is measured). Of each score: the share of wrong tokens
that it catches where it may lose 1, 2 or 5 of 100 right ones.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from acceptance import Pair, answers, common_options, head_of, open_pair
from report import about_this_run, write
from tqdm import tqdm

from fjx.distill.corpus import Sample
from fjx.distill.target import whole_requests
from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.models.granules import Model
from fjx.models.loading.load import load_params
from fjx.models.loading.source import resolve
from fjx.models.tensors import canonical_tensors

LOST = (0.01, 0.02, 0.05)
_ROWS = 1024
_PAGE = 16
_RIDGE = 1e-2
"""Relative to the mean square of the residual stream."""


class Layers:
    """The target's residual stream after every few layers."""

    def __init__(self, pair: Pair, model: str, granule_layers: int) -> None:
        self.config, self.dtype = pair.target.config, pair.target.dtype
        self._model = Model(self.config, granule_layers)
        specs, tensors = canonical_tensors(self.config), {}

        def take(name: str, values: np.ndarray) -> None:
            if not name.startswith("head."):
                tensors[name] = jnp.asarray(specs[name].store(values, self.dtype))

        load_params(resolve(model), self.config, take, progress=False)
        self._embed = self._model.pack_embed(tensors)
        stacked = jax.default_backend() != "cpu"
        self._granules = [
            self._model.pack_granule(i, tensors, stacked=stacked)
            for i in range(len(self._model.granules))
        ]
        self.after = [layers[-1] + 1 for layers in self._model.granules]
        """How many layers each of the streams has behind it."""
        self._run = jax.jit(self._streams)

    def streams(self, sample: Sample) -> np.ndarray:
        """After each granule, for each token of a sample, ``[G, N, D]``."""
        tokens = np.zeros(_ROWS, np.int32)
        tokens[: len(sample.tokens)] = sample.tokens
        rows = whole_requests([len(sample.tokens)], _ROWS, _ROWS)
        found = self._run((self._embed, self._granules), tokens, rows)
        return np.asarray(found)[:, : len(sample.tokens)]

    def _streams(self, params: Any, tokens: Any, rows: Any) -> Any:
        embed, granules = params
        x, found = self._model.embed(embed, tokens, rows), []
        for granule, layers in zip(granules, self._model.granules, strict=True):
            shape = kv_pages_shape(
                len(layers),
                int(rows.page_table.size),
                _PAGE,
                self.config.num_kv_heads,
                self.config.head_dim,
            )
            x, _ = self._model.granule(
                granule, x, jnp.zeros(shape, kv_storage_dtype(self.dtype)), rows
            )
            found.append(x)
        return jnp.stack(found)


def caught(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Share of the wrong tokens below the score under which so few of the right ones lie."""
    shares = {}
    for lost in LOST:
        threshold = np.quantile(scores[right], lost, method="lower")
        shares[f"{lost:g}"] = round(float(np.mean(scores[~right] < threshold)), 4)
    return shares


def main() -> None:
    """Measure and print."""
    options = parse_options()
    head_of(options)  # or it ends here, before the long work
    samples = answers(options, [0.0])[0.0]
    pair = open_pair(options)
    layers = Layers(pair, options.model, options.granule_layers)
    ids = pair.head.token_ids
    streams, targets, drafted, sure = [], [], [], []
    for sample, (x, estimates) in zip(
        samples, tqdm(pair.rows_of(samples), total=len(samples), unit="output"), strict=True
    ):
        q = np.asarray(jax.nn.softmax(pair.q_logits(estimates)))
        drafted.append(q.argmax(axis=1))
        sure.append(q.max(axis=1))
        # The rows that chose the output's tokens, from the second one on.
        rows = slice(sample.prompt_length, len(sample.tokens) - 1)
        targets.append(sample.tokens[sample.prompt_length + 1 :])
        streams.append(layers.streams(sample)[:, rows])
        assert streams[-1].shape[1] == len(x) == len(targets[-1])
    half = sum(map(len, targets[: len(targets) // 2]))
    stream = np.concatenate(streams, axis=1)
    d, y, confidence = (np.concatenate(each) for each in (drafted, targets, sure))
    right = ids[d] == y

    def gaps(x: np.ndarray) -> np.ndarray:
        """How far the drafted token is behind the likeliest one, by the lens; never above 0."""
        found = []
        for begin in range(0, len(x), 256):
            logits = np.asarray(pair.q_logits(x[begin : begin + 256]))
            mine = np.take_along_axis(logits, d[half:][begin : begin + 256, None], axis=1)[:, 0]
            found.append(mine - logits.max(axis=1))
        return np.concatenate(found)

    scores = {"drafter": {"0": caught(confidence[half:], right[half:])}, "lens": {}, "mapped": {}}
    for number, depth in enumerate(layers.after[:-1]):
        x, last = stream[number], stream[-1]
        scores["lens"][f"{depth}"] = caught(gaps(x[half:]), right[half:])
        scores["mapped"][f"{depth}"] = caught(
            gaps(x[half:] @ ridge(x[:half], last[:half])), right[half:]
        )
    result = {
        "about": about_this_run(),
        "model": options.model,
        "layers": layers.after[-1],
        "tokens": {"fitted": half, "measured": len(right) - half},
        "right": round(float(right[half:].mean()), 4),
        "caught_where_so_many_right_ones_are_lost": scores,
    }
    write(options.output, result)
    print(json.dumps(result["caught_where_so_many_right_ones_are_lost"], indent=2))


def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The linear map from x to y."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    gram = x.T @ x
    gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.solve(gram, x.T @ y).astype(np.float32)


def parse_options() -> argparse.Namespace:
    parser = common_options(__doc__.splitlines()[0], count=120)
    parser.add_argument(
        "--granule-layers", type=int, default=5, help="layers from one look to the next [5]"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
