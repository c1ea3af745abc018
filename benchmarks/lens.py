"""What a look between two stages knows about drafted tokens that their drafter did not know.

    python benchmarks/lens.py --output FILE.json

The target answers real prompts greedily, its draft head proposes every output token one token
earlier, and each proposal is right or wrong. A *score* orders them: the drafter's confidence, or
the logit lens at some layer: how far the drafted token is behind the likeliest one, by the residual
stream there through the final norm and the head's columns of the unembedding. The stream goes
there as it is, or after a linear map to the last layer's: fitted on half of the prompts (the other
half is measured), or the one that comes with the head. *Both*: the head's map together with the
drafter's confidence, by logistic regression on the same half. Of each score: the share of wrong
tokens that it catches where it may lose 1, 2 or 5 of 100 right ones.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import numpy as np
from acceptance import answers, common_options, head_of, open_pair
from report import about_this_run, write
from tqdm import tqdm

from fjx.distill.lens_maps import ridge

LOST = (0.01, 0.02, 0.05)


def caught(scores: np.ndarray, right: np.ndarray) -> dict[str, float | None]:
    """Share of the wrong tokens below the score under which so few of the right ones lie; None
    where no token is right."""
    shares: dict[str, float | None] = {}
    for lost in LOST:
        if not right.any():
            shares[f"{lost:g}"] = None
            continue
        threshold = np.quantile(scores[right], lost, method="lower")
        shares[f"{lost:g}"] = round(float(np.mean(scores[~right] < threshold)), 4)
    return shares


def main() -> None:
    """Measure and print."""
    options = parse_options()
    head_of(options)  # or it ends here, before the long work
    samples = answers(options, [0.0])[0.0]
    pair = open_pair(options)
    maps, layers = pair.maps, pair.target.config.num_layers
    looks = sorted({*range(options.every, layers, options.every), *maps})
    ids = pair.head.token_ids
    whole = (
        of_sample
        for lengths, of_batch in pair.target.passes(samples, [*looks, layers])
        for of_sample in np.split(of_batch, np.cumsum(lengths)[:-1], axis=1)
    )
    streams, targets, drafted, sure = [], [], [], []
    for sample, of_sample, (x, estimates) in zip(
        samples, whole, tqdm(pair.rows_of(samples), total=len(samples), unit="output"), strict=True
    ):
        q = np.asarray(jax.nn.softmax(pair.q_logits(estimates)))
        drafted.append(q.argmax(axis=1))
        sure.append(q.max(axis=1))
        # The rows that chose the output's tokens, from the second one on.
        rows = slice(sample.prompt_length, len(sample.tokens) - 1)
        targets.append(sample.tokens[sample.prompt_length + 1 :])
        streams.append(of_sample[:, rows])
        assert streams[-1].shape[1] == len(x) == len(targets[-1])
    half = sum(map(len, targets[: len(targets) // 2]))
    stream = np.concatenate(streams, axis=1)
    d, y, confidence = (np.concatenate(each) for each in (drafted, targets, sure))
    right = ids[d] == y

    def gaps(x: np.ndarray) -> np.ndarray:
        """How far each drafted token is behind the likeliest one; never above 0."""
        found = []
        for begin in range(0, len(x), 256):
            logits = np.asarray(pair.q_logits(x[begin : begin + 256]))
            mine = np.take_along_axis(logits, d[begin : begin + 256, None], axis=1)[:, 0]
            found.append(mine - logits.max(axis=1))
        return np.concatenate(found)

    def share(score: np.ndarray) -> dict[str, float]:
        return caught(score[half:], right[half:])

    odds = np.log(confidence) - np.log1p(-np.minimum(confidence, 1 - 1e-6))
    scores: dict[str, Any] = {"drafter": share(odds)}
    for x, depth in zip(stream, looks, strict=False):
        begun = x[:half].astype(np.float64)
        fitted = ridge(begun.T @ begun, begun.T @ stream[-1][:half])
        at = scores[f"layer {depth}"] = {
            "as it is": share(gaps(x)),
            "fitted here": share(gaps(x @ fitted)),
        }
        if depth in maps:
            lens = gaps(x @ maps[depth].astype(np.float32))
            at["with the head's map"] = share(lens)
            at["both"] = share(weighed(np.stack([odds, lens], axis=1), right, half))
    result = {
        "about": about_this_run(),
        "model": options.model,
        "layers": layers,
        "tokens": {"fitted": half, "measured": len(right) - half},
        "right": round(float(right[half:].mean()), 4),
        "caught_where_so_many_right_ones_are_lost": scores,
    }
    write(options.output, result)
    print(json.dumps(result["caught_where_so_many_right_ones_are_lost"], indent=2))


def weighed(features: np.ndarray, right: np.ndarray, fitted: int) -> np.ndarray:
    """The features' weighed sum, by logistic regression on the first ``fitted`` rows."""
    x = np.column_stack([np.ones(len(features)), features / features[:fitted].std(axis=0)])
    weights = np.zeros(x.shape[1])
    for _ in range(30):  # Newton's steps
        chance = 1 / (1 + np.exp(-(x[:fitted] @ weights)))
        curvature = (x[:fitted] * (chance * (1 - chance))[:, None]).T @ x[:fitted]
        slope = x[:fitted].T @ (right[:fitted] - chance)
        weights += np.linalg.solve(curvature + 1e-3 * np.eye(len(weights)), slope)
    score: np.ndarray = x @ weights
    return score


def parse_options() -> argparse.Namespace:
    parser = common_options(__doc__.splitlines()[0], count=120)
    parser.add_argument("--every", type=int, default=5, help="layers from one look to the next [5]")
    return parser.parse_args()


if __name__ == "__main__":
    main()
