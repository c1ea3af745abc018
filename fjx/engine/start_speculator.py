"""From a configuration to what drafts: nothing, prompt lookup, a draft head, or a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fjx.config import EngineConfig
from fjx.engine.loading import load_executors, make_planner, make_programs
from fjx.engine.names import HEAD_SUFFIX, NO_MODEL, check_drafter_name
from fjx.errors import UserError
from fjx.models.config import ModelConfig
from fjx.models.draft_head import DraftHead
from fjx.models.loading.draft_head_file import (
    Fingerprint,
    built_in_draft_head,
    check_target,
    load_draft_head,
)
from fjx.models.loading.load import load_model_config
from fjx.models.loading.source import ModelSource, resolve
from fjx.models.logit_lens import LogitLens, map_name
from fjx.models.tokenizer import Tokenizer, load_tokenizer
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.draft_programs import HeadPrograms
from fjx.pipeline.executor import Executor
from fjx.pipeline.limits import Limits
from fjx.pipeline.programs import Programs
from fjx.scheduling.replica import Replica
from fjx.sharding.plan.plan import Deployment, Device
from fjx.speculation.policy.frontiers import FrontierDepth
from fjx.speculation.policy.lengths import policy_by_name
from fjx.speculation.runtime.draft_model import DraftModel
from fjx.speculation.runtime.drafter import Drafter, LookupOrHead, PromptLookup
from fjx.speculation.runtime.head_drafter import HeadDrafter
from fjx.speculation.runtime.pruning import Lens
from fjx.speculation.runtime.speculator import Speculator

logger = logging.getLogger(__name__)

_LENS_TOKENS = 4096
_RANDOM_HEAD_TOKENS = 8192


class HeadStart:
    """A draft head, and what it takes from the target's tensors while they are read."""

    def __init__(
        self,
        config: ModelConfig,
        token_ids: np.ndarray,
        tensors: Mapping[str, np.ndarray],
        check: Callable[[str], None] = lambda fingerprint: None,
        maps: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        """
        Args:
            config: the target's.
            token_ids: what the head can draft.
            tensors: the head's own.
            maps: of a logit lens, see `LoadedDraftHead`.
            check: is given the target's fingerprint once all of it is read; raises if the head is
                for another one.
        """
        self.head = DraftHead(config, token_ids)
        self.maps = maps or {}
        self._check = check
        self._fingerprint = Fingerprint(config)
        self._tensors = dict(tensors)

    @classmethod
    def from_file(cls, path: Path, target: str, config: ModelConfig) -> HeadStart:
        """A trained head.

        Raises:
            ModelError: the file is broken, or for another target.
        """
        loaded = load_draft_head(path)
        check_target(path, loaded.config, target, config, None)
        check = partial(check_target, path, loaded.config, target, config)
        return cls(config, loaded.token_ids, loaded.tensors, check, loaded.maps)

    @classmethod
    def random(cls, config: ModelConfig) -> HeadStart:
        """A head of the usual shape that knows nothing, to be timed."""
        ids = np.arange(min(_RANDOM_HEAD_TOKENS, config.vocab_size), dtype=np.int32)
        draw = np.random.default_rng(0)
        tensors = {
            name: 0.02 * draw.standard_normal(spec.shape, np.float32) + name.endswith("norm")
            for name, spec in DraftHead(config, ids).trained_tensors().items()
        }
        return cls(config, ids, tensors)

    def take(self, name: str, values: np.ndarray) -> None:
        """Look at one of the target's canonical tensors."""
        self._fingerprint.take(name, values)
        shared = self.head.from_target(name, values)
        if shared is not None:
            self._tensors[name] = shared

    def programs(
        self, target: Programs, deployment: Deployment, devices: Mapping[Device, jax.Device]
    ) -> HeadPrograms:
        """The head's programs, on the first device of the last stage: what it reads is there."""
        last = deployment.replicas[0].stages[-1].mesh.devices[0]
        return HeadPrograms(
            self.head,
            target.model,
            target.limits,
            target.dtype,
            devices[last],
        )

    def drafter(self, executor: Executor, longest: int) -> HeadDrafter:
        """The head at work, once all of the target is read.

        Raises:
            ModelError: it is for other weights.
        """
        self._check(self._fingerprint.digest())
        pieces, target = executor.pieces, executor.programs
        device = pieces.shapes[-1].placement.devices[0]
        programs = HeadPrograms(self.head, target.model, target.limits, target.dtype, device)
        embed = jax.device_put(pieces.embed.params, device)
        params = programs.place(self._tensors)
        return HeadDrafter(programs, params, embed, executor.compiler, longest)


def find_head(config: EngineConfig, model_config: ModelConfig) -> HeadStart | None:
    """The draft head that the configuration asks for; None: none.

    Raises:
        UserError: there is no such head, or it is for another target.
    """
    name = config.drafter
    if not config.drafts or config.batch_invariant:
        return None
    if name.endswith(HEAD_SUFFIX):
        return HeadStart.from_file(Path(name), config.model, model_config)
    if name not in ("auto", "head"):
        return None
    if config.load_random_weights:
        return HeadStart.random(model_config) if name == "head" else None
    path = built_in_draft_head(config.model)
    if path is not None:
        return HeadStart.from_file(path, config.model, model_config)
    if name == "head":
        raise UserError(
            f"no draft head for {config.model!r} comes with fjx; train one with 'fjx distill "
            f"--model {config.model}' and give its file as drafter"
        )
    return None


class LensStart:
    """What pruning takes from the target's tensors while they are read."""

    def __init__(
        self, config: ModelConfig, token_ids: np.ndarray, maps: Mapping[int, np.ndarray]
    ) -> None:
        """``token_ids``: what the lens will know; ``maps``: by the number of layers that they are
        behind, see `LogitLens`."""
        self._vocabulary = config.vocab_size
        self.lens = LogitLens(config, token_ids, maps.keys())
        self._tensors = {map_name(layers): values for layers, values in maps.items()}

    def take(self, name: str, values: np.ndarray) -> None:
        """Look at one of the target's canonical tensors."""
        taken = self.lens.from_target(name, values)
        if taken is not None:
            self._tensors[name] = taken

    def open(self, dtype: jnp.dtype) -> Lens:
        """The lens at work, once all of the target is read."""
        specs = self.lens.logit_tensors() | self.lens.map_tensors()
        stored = {name: specs[name].store(values, dtype) for name, values in self._tensors.items()}
        return Lens(self.lens, stored, self._vocabulary)


def find_lens(
    config: EngineConfig, model_config: ModelConfig, head: HeadStart | None
) -> LensStart | None:
    """What prunes, if the configuration asks for it: with a draft head's tokens and maps, or with
    the first tokens of the vocabulary, which in a byte-pair encoding are the most frequent."""
    if config.pruning == "off" or not config.drafts or config.batch_invariant:
        return None
    if head is not None:
        return LensStart(model_config, head.head.token_ids, head.maps)
    ids = np.arange(min(_LENS_TOKENS, model_config.vocab_size), dtype=np.int32)
    return LensStart(model_config, ids, {})


def start_speculator(
    config: EngineConfig,
    tokenizer: Tokenizer,
    target: Executor,
    head: HeadStart | None,
    lens: LensStart | None,
    progress: bool,
) -> Speculator | None:
    """What drafts for a target; None: nothing does.

    Raises:
        UserError: the drafter cannot be had, or is not for this target.
    """
    limits = target.limits
    if not limits.max_draft_rows:
        if config.drafter not in ("auto", "off"):
            logger.warning(
                "nothing is drafted: a step of %d rows has none left behind those of %d requests; "
                "raise max_num_batched_tokens or lower max_num_seqs",
                limits.max_num_batched_tokens,
                limits.max_num_seqs,
            )
        return None
    longest = config.max_draft_length
    drafter: Drafter
    if head is not None:
        drafter = head.drafter(target, longest)
        if config.drafter == "auto":
            drafter = LookupOrHead(PromptLookup(longest), drafter)
    elif config.drafter in ("auto", "ngram"):
        drafter = PromptLookup(longest)
    else:
        drafter = start_draft_model(config, limits, tokenizer, progress)
    return Speculator(
        drafter,
        policy_by_name(config.draft_policy),
        limits.row_buckets,
        FrontierDepth(config.max_frontiers, len(target.plan.stages)),
        None if lens is None else lens.open(target.programs.dtype),
        config.pruning == "always",
        config.draft_ahead,
        compiled=_waits_for(target.compiler, drafter),
    )


def remote_speculator(
    config: EngineConfig, limits: Limits, drafter: Drafter, stages: int
) -> Speculator:
    """A speculator for a target of ``stages`` stages in other processes: without pruning inside
    its steps and without drafting during them."""
    return Speculator(
        drafter,
        policy_by_name(config.draft_policy),
        limits.row_buckets,
        FrontierDepth(config.max_frontiers, stages),
        compiled=_waits_for(None, drafter),
    )


def _waits_for(target: Compiler | None, drafter: Drafter) -> Callable[[], int]:
    """Counts how often steps or drafts have waited for a compiler of this process; ``target``:
    that of the target, where it is one."""
    compilers = [] if target is None else [target]
    if isinstance(drafter, DraftModel):
        compilers.append(drafter.compiler)
    return lambda: sum(each.compiled_in_steps for each in compilers)


def start_draft_model(
    config: EngineConfig, limits: Limits, tokenizer: Tokenizer, progress: bool
) -> DraftModel:
    """The model that the configuration names as drafter, on this process's devices, with pages for
    as many tokens as the target has.

    Raises:
        UserError: it cannot be had, or has another vocabulary.
    """
    of_draft = replace(
        config,
        model=config.drafter,
        revision=None,
        max_model_len=None,
        kv_cache_tokens=limits.num_pages * limits.page_size,
        mesh=config.draft_mesh,
        granule_layers=None,
        quantization=None,
        profile=None,
        drafter="off",
    )
    source = find_draft_model(config, tokenizer)
    programs = make_programs(of_draft, load_model_config(source), confidences=True)
    deployment = make_planner(of_draft, programs).plan(of_draft.mesh)
    (executor, *_) = load_executors(of_draft, source, programs, deployment, progress)
    # Its pages hold tokens that are not committed yet, which must not be found by others.
    replica = Replica(executor, share_prefixes=False, end_tokens=tokenizer.eos_token_ids)
    return DraftModel(config.drafter, replica, config.max_draft_length)


def find_draft_model(config: EngineConfig, tokenizer: Tokenizer) -> ModelSource:
    """Where the model is that the configuration names as drafter.

    Raises:
        UserError: it cannot be had, or has another vocabulary than the target.
    """
    check_drafter_name(config.drafter)
    source = resolve(config.drafter, None, config.cache_dir)
    check_same_vocabulary(config.drafter, load_tokenizer(source), config.model, tokenizer)
    return source


def check_draft_model(config: EngineConfig, tokenizer: Tokenizer) -> None:
    """Find out, before the target is loaded, whether a draft model can be had.

    Raises:
        UserError: it cannot, or has another vocabulary.
    """
    named = config.drafter not in NO_MODEL and not config.drafter.endswith(HEAD_SUFFIX)
    if config.drafts and named:
        find_draft_model(config, tokenizer)


def check_same_vocabulary(
    drafter: str, of_drafter: Tokenizer, target: str, of_target: Tokenizer
) -> None:
    """Check that a token means the same to both.

    Raises:
        UserError: a token of one is another text in the other.
    """
    sizes = of_drafter.vocab_size, of_target.vocab_size
    differing = next(
        (id for id in range(min(sizes)) if of_drafter.token_bytes(id) != of_target.token_bytes(id)),
        None if sizes[0] == sizes[1] else min(sizes),
    )
    if differing is not None:
        raise UserError(
            f"the drafter {drafter!r} and the target {target!r} have different vocabularies "
            f"({sizes[0]} and {sizes[1]} tokens): token {differing} is "
            f"{of_drafter.token_bytes(differing)!r} in one and "
            f"{of_target.token_bytes(differing)!r} in the other; choose a drafter of the target's "
            "family"
        )
