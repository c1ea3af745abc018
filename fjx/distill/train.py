"""Training a draft head: AdamW over packed windows, with checkpoints to go on from."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32

from fjx.distill.acceptance import Acceptance, measure
from fjx.distill.config import DistillConfig
from fjx.distill.features import Example
from fjx.distill.unrolled import UnrolledHead
from fjx.distill.windows import Window, make_batch, pack
from fjx.errors import UserError
from fjx.progress_bar import progress_bar

_WARM_UP = 0.03
"""Share of the training in which the learning rate rises."""
_LAST_RATE = 0.02
"""The learning rate at the end, relative to the highest."""
_CLIP = 1.0
_WEIGHT_DECAY = 0.01
_SAVE_SECONDS = 120.0
_MEASURE_SECONDS = 240.0
_MEASURED_BATCHES = 6
"""Batches of the measurements in between; at the end all held-out outputs are measured."""

Tensors = dict[str, Array]


class State(NamedTuple):
    """What a checkpoint holds."""

    tensors: Tensors
    optimizer: Any
    step: int
    seconds: float
    """Of training so far."""


class Trainer:
    """Trains the tensors of one head.

    Args:
        config: how.
        head: what.
        frozen: the target's part, see `UnrolledHead.frozen`.
        examples: outputs with their residual streams, some of them held out.
        index_of: for each token id its index in the head's vocabulary, or -1.
        folder: where checkpoints and the log are kept.
    """

    def __init__(
        self,
        config: DistillConfig,
        head: UnrolledHead,
        frozen: Any,
        examples: Sequence[Example],
        index_of: Int32[np.ndarray, " V"],
        folder: Path,
    ) -> None:
        self._config, self._head, self._frozen = config, head, frozen
        self._index_of = index_of
        self._folder = folder
        self._training = [example for example in examples if not example.sample.held_out]
        self._held_out = [example for example in examples if example.sample.held_out]
        self._windows = pack(self._training, config.window, config.seed)
        self._measured = pack(self._held_out, config.window, config.seed)
        self._an_epoch = len(self._windows) // config.windows
        if self._an_epoch < 1 or not self._measured:
            raise UserError(
                f"{len(examples)} outputs are too few to train on; generate more --tokens, or use "
                "fewer --windows"
            )
        self.steps = math.ceil(config.epochs * self._an_epoch)
        """Batches of the whole training, where time allows them."""
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(_CLIP),
            optax.scale_by_adam(b1=0.9, b2=0.95),
            optax.add_decayed_weights(
                _WEIGHT_DECAY, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
            ),
            # The tensors begin as parts of the target and as a least-squares fit: their scales
            # differ by more than a factor of ten.
            optax.scale_by_param_block_rms(),
        )
        self._update = jax.jit(self._make_update, donate_argnums=(0, 1))
        self._agreement = jax.jit(head.agreement)

    def start(self, tensors: dict[str, np.ndarray]) -> State:
        """Begin from these tensors, or go on from the last checkpoint."""
        begun = {name: jnp.asarray(values) for name, values in tensors.items()}
        state = State(begun, self._optimizer.init(begun), 0, 0.0)
        return _restore(self._folder, state) or state

    def train(self, state: State, progress: bool = True) -> State:
        """Train to the end, saving on the way."""
        clock = _Clock(state.seconds)
        saved = measured = time.monotonic()
        log = _Log(self._folder / "log.jsonl", state.step)
        with progress_bar(
            total=self.steps, initial=state.step, desc="Training", unit="step", disable=not progress
        ) as bar:
            while (done := self._progress(state.step, clock.seconds)) < 1:
                tensors, optimizer, scores = self._update(
                    state.tensors,
                    state.optimizer,
                    self._frozen,
                    self._batch(state.step),
                    self._config.learning_rate * schedule(done),
                )
                scores = {name: np.asarray(x).tolist() for name, x in scores.items()}
                state = State(tensors, optimizer, state.step + 1, clock.seconds)
                log.add("step", state, scores)
                bar.set_postfix(loss=f"{scores['loss']:.3f}", agree=f"{scores['agree'][0]:.3f}")
                bar.update()
                if time.monotonic() - measured > _MEASURE_SECONDS:
                    self._log_acceptance(log, state, _MEASURED_BATCHES)
                    measured = time.monotonic()
                if time.monotonic() - saved > _SAVE_SECONDS:
                    _save(self._folder, state)
                    saved = time.monotonic()
        self._log_acceptance(log, state, _MEASURED_BATCHES)
        _save(self._folder, state)
        return state

    def acceptance(self, tensors: Tensors, max_batches: int | None = None) -> dict[str, Acceptance]:
        """Measure held-out outputs, by group; see `fjx.distill.acceptance.groups_of`."""
        config = self._config
        groups: dict[str, Acceptance] = {}
        for number in range(0, len(self._measured), config.windows):
            if max_batches is not None and number >= max_batches * config.windows:
                break
            windows = self._measured[number : number + config.windows]
            padded = [*windows, *[()] * (config.windows - len(windows))]
            batch = make_batch(
                self._held_out,
                padded,
                config.window,
                config.draft_positions,
                self._index_of,
                np.random.default_rng(0),
                share=1.0,
            )
            agrees = np.asarray(self._agreement(tensors, self._frozen, batch))
            for group, found in measure(self._held_out, padded, config.window, batch, agrees):
                groups[group] = groups[group] + found if group in groups else found
        return dict(sorted(groups.items()))

    def coverage(self) -> float:
        """Share of the held-out outputs' tokens that the head can draft."""
        tokens = np.concatenate(
            [each.sample.tokens[each.sample.prompt_length :] for each in self._held_out]
        )
        return float((self._index_of[tokens] >= 0).mean())

    def _make_update(
        self, tensors: Tensors, optimizer: Any, frozen: Any, batch: Any, rate: Float[Array, ""]
    ) -> tuple[Tensors, Any, dict[str, Array]]:
        (loss, scores), gradient = jax.value_and_grad(self._head.losses, has_aux=True)(
            tensors, frozen, batch
        )
        updates, optimizer = self._optimizer.update(gradient, optimizer, tensors)
        tensors = jax.tree.map(lambda x, change: x - rate * change, tensors, updates)
        scores = {"loss": loss, "gradient": _norm(gradient), "rate": rate, **scores}
        return tensors, optimizer, scores

    def _progress(self, step: int, seconds: float) -> float:
        return max(step / self.steps, seconds / (60 * self._config.minutes))

    def _batch(self, step: int) -> Any:
        config = self._config
        epoch, number = divmod(step, self._an_epoch)
        order = np.random.default_rng([config.seed, epoch]).permutation(len(self._windows))
        # A draft of several positions costs as much as so many batches of one.
        passes = 1 if step % config.unroll_every else config.draft_positions
        chosen: list[Window] = [
            self._windows[i]
            for i in order[number * config.windows : (number + 1) * config.windows].tolist()
        ]
        return make_batch(
            self._training,
            chosen,
            config.window,
            passes,
            self._index_of,
            np.random.default_rng([config.seed, step]),
        )

    def _log_acceptance(self, log: _Log, state: State, batches: int) -> None:
        groups = self.acceptance(state.tensors, batches)
        log.add("acceptance", state, {name: found.as_dict() for name, found in groups.items()})


def schedule(progress: float) -> float:
    """The learning rate relative to the highest: a short rise, then half a cosine."""
    if progress < _WARM_UP:
        return max(progress, 1e-3) / _WARM_UP
    share = (progress - _WARM_UP) / (1 - _WARM_UP)
    return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share))


def _norm(tensors: Tensors) -> Array:
    return jnp.sqrt(sum(jnp.sum(x * x) for x in tensors.values()))


class _Clock:
    """Seconds of training, over interruptions."""

    def __init__(self, before: float) -> None:
        self._begin = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin


class _Log:
    """Lines of JSON; those of steps that will be done again are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = [line for line in read_log(path) if line["step"] <= step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")

    def add(self, kind: str, state: State, values: dict[str, Any]) -> None:
        line = {"kind": kind, "step": state.step, "seconds": round(state.seconds, 2), **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's log; none where it has not begun."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _save(folder: Path, state: State) -> None:
    """Write a checkpoint; it takes the place of the one before."""
    import orbax.checkpoint as ocp

    path = folder / "checkpoint"
    partial = folder / f"checkpoint-{state.step}"
    tree = state._asdict() | {"optimizer": jax.tree.leaves(state.optimizer)}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(partial.absolute(), jax.tree.map(np.asarray, tree), force=True)
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


def _restore(folder: Path, like: State) -> State | None:
    """The last checkpoint.

    Raises:
        UserError: it is broken.
    """
    import orbax.checkpoint as ocp

    path = folder / "checkpoint"
    if not path.is_dir():
        return None
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(path.absolute())
        structure = jax.tree.structure(like.optimizer)
        return State(
            {name: jnp.asarray(tree["tensors"][name]) for name in like.tensors},
            jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in tree["optimizer"]]),
            int(tree["step"]),
            float(tree["seconds"]),
        )
    except Exception as error:  # Orbax and TensorStore document no common type
        raise UserError(
            f"{path}: the checkpoint cannot be read ({error}); remove it to train from the start"
        ) from error
