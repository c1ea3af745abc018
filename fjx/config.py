"""The engine's configuration: one frozen dataclass, each field documented where it stands.

The command line and the TOML configuration file are generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fjx.errors import UserError
from fjx.output_files import check_output_file, check_output_folder

LONGEST_DRAFT = 64
UNKNOWN_KV_GIB = 2.0
"""KV memory where it is not known how much the devices have."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is loaded and served.

    Raises:
        UserError: values contradict each other; the message names them.
    """

    model: str = "smollm2-135m"
    """A local folder or .gguf file, a Hugging Face hub id, or the name of an embedded model."""
    tokenizer: str | None = None
    """Folder or hub id of another tokenizer; by default the model's own."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    cache_dir: Path | None = None
    """Where downloaded models and compiled programs are kept; by default ~/.cache/fjx
    ($FJX_CACHE)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights and KV pages. auto: bfloat16 where the processor multiplies it natively."""
    quantization: Literal["int8", "fp8"] | None = None
    """Store the blocks' matrices in eight bits an entry, which are read in half the time: int8 is
    the more exact one; see docs/quantization.md. By default they have the type of dtype."""
    max_model_len: int | None = None
    """Longest prompt plus output, in tokens; by default what the model was trained for."""
    max_num_seqs: int = 64
    """Most requests in one batch."""
    max_num_batched_tokens: int = 256
    """Most tokens in one step: decode tokens plus chunks of prefill."""
    max_waiting_requests: int = 1024
    """Most requests in the queue; one more is refused."""
    page_size: int = 16
    """Token slots in a page of KV memory."""
    kv_cache_tokens: int | None = None
    """Token slots of KV memory; by default what kv_cache_memory holds."""
    kv_cache_memory: float | None = None
    """Most GiB of KV memory, where kv_cache_tokens is not given; by default a quarter of what the
    machine has free beside the parameters (half, on a GPU), and 2 GiB on a cluster. Never more than
    max_num_seqs can use; on a CPU, a page takes memory from when it is first used."""
    enable_prefix_caching: bool = True
    """Share pages between requests whose tokens begin alike."""
    overlap: bool = True
    """Keep the host one step behind the device; off: wait for each step (for debugging)."""
    batch_invariant: bool = False
    """Run every step in one shape of max_num_seqs rows, so that not even the last bit of a logit
    depends on the batch. In bfloat16 on a CPU this holds without it."""
    drafter: str = "auto"
    """Who proposes tokens for speculative decoding: ngram (what followed in the request's own
    text), head (the draft head that comes with fjx for this model), a head's .safetensors file,
    another model of the same vocabulary (named like model), auto (the head, if there is one, and
    ngram), or off."""
    draft_policy: str = "marginal"
    """How long drafts are: marginal (as long as they pay, for each request), fixed:K, batch (by the
    number of requests), confidence, faser, or off; see docs/speculation.md."""
    max_draft_length: int = 8
    """Longest draft of a request in one round."""
    max_frontiers: int = 4
    """Most steps with drafts of one request under way at once, where that pays; 1: each is read
    before the next one is drafted for."""
    pruning: Literal["off", "auto", "always"] = "off"
    """Look at drafted tokens late in their verification and take hopeless ones out: auto (where
    that pays), always (for measuring), or off."""
    draft_ahead: Literal["off", "auto", "always"] = "off"
    """Draft on while a step verifies, where a draft model is on the target's device: auto (where
    that pays; only on a GPU, which can do both at once), always (for measuring), or off: XLA for
    an H100 does not compile such a program yet, see docs/gpu.md."""
    draft_mesh: str = "single"
    """Devices of a draft model, like mesh."""
    mesh: str = "single"
    """Devices and stages: the name of a ready-made mesh, a mesh file, or auto: as few stages as
    the free memory of the machine's devices allows."""
    cluster: str | None = None
    """Address of a Ray cluster whose nodes hold the stages, host:port, or auto: the one that runs
    on this machine; by default all stages are in this process. See docs/cluster.md."""
    cluster_file: str | None = None
    """What is known of the cluster's nodes: racks, links, free memory, speeds, see
    docs/mesh-files.md; the nodes have Ray's names. By default all links are alike."""
    cluster_patience: float = 5.0
    """Seconds without a sign of life after which a cluster's worker counts as lost."""
    idle_timeout: float | None = None
    """Seconds without a request after which a cluster's devices are given back, until the next one
    comes; by default they are kept."""
    plan_ladder: tuple[str, ...] = ()
    """Meshes among which the engine chooses by the load, see docs/granularity.md; by default it
    keeps its plan until it is told to change it."""
    granularity_scorer: Literal["service", "flexpipe"] = "service"
    """What makes a plan of the ladder good: service in time with few devices, or FlexPipe's
    equation 4."""
    ttft_objective: float = 2.0
    """How long a request may wait for its first token, in seconds; a rule for plan_ladder."""
    itl_objective: float = 0.2
    """Longest time from token to token, in seconds; likewise."""
    decision_log: Path | None = None
    """Where the decisions about the plan are logged, so that they can be replayed."""
    granule_layers: int | None = None
    """Consecutive layers in one granule; by default about an eighth of the model."""
    profile: Path | None = None
    """Measured costs of the model's pieces, from `fjx profile`; by default they are modelled."""
    trace_dir: Path | None = None
    """Write a trace by JAX's profiler into this folder, for XProf or Perfetto."""
    trace_steps: int = 50
    """How many steps are traced, from the 20th on."""
    warmup: bool = True
    """Compile all programs before serving; off: each when it is first needed, for which a request
    then waits."""
    seed: int | None = None
    """Fixes the seeds drawn for requests that bring none (request order then matters)."""
    load_random_weights: bool = False
    """Draw random weights instead of loading (benchmarks of shapes whose weights are not at
    hand)."""

    @property
    def drafts(self) -> bool:
        """Whether anything is ever drafted."""
        return "off" not in (self.drafter, self.draft_policy) and self.max_draft_length > 0

    def __post_init__(self) -> None:
        # It needs NumPy, for which --help does not wait.
        from fjx.speculation.policy.lengths import policy_by_name

        def check(ok: bool, message: str) -> None:
            if not ok:
                raise UserError(message)

        for name in (
            *("max_num_seqs", "max_num_batched_tokens", "page_size", "max_waiting_requests"),
            "trace_steps",
        ):
            check(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        check(
            0 <= self.max_draft_length <= LONGEST_DRAFT,
            f"max_draft_length must be in [0, {LONGEST_DRAFT}], got {self.max_draft_length}",
        )
        check(
            1 <= self.max_frontiers <= 16,
            f"max_frontiers must be in [1, 16], got {self.max_frontiers}",
        )
        try:
            policy_by_name(self.draft_policy)
        except ValueError as error:
            raise UserError(f"draft_policy: {error}") from None
        check(
            self.max_num_batched_tokens >= self.max_num_seqs,
            f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
            f"({self.max_num_seqs}), so that every running request gets a row in each step",
        )
        check(
            self.max_model_len is None or self.max_model_len >= 2,
            f"max_model_len must be at least 2, got {self.max_model_len}",
        )
        check(
            self.dtype in ("auto", "float32", "bfloat16"),
            f"dtype must be auto, float32 or bfloat16, got {self.dtype!r}",
        )
        check(
            self.quantization in (None, "int8", "fp8"),
            f"quantization must be int8 or fp8, got {self.quantization!r}",
        )
        check(
            self.pruning in ("off", "auto", "always"),
            f"pruning must be off, auto or always, got {self.pruning!r}",
        )
        check(
            self.draft_ahead in ("off", "auto", "always"),
            f"draft_ahead must be off, auto or always, got {self.draft_ahead!r}",
        )
        for name in ("ttft_objective", "itl_objective"):
            check(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        check(
            self.cluster_patience > 0,
            f"cluster_patience must be positive, got {self.cluster_patience}",
        )
        check(
            self.cluster_file is None or self.cluster is not None,
            "cluster_file is for a cluster; name one with cluster",
        )
        check(
            self.idle_timeout is None or self.cluster is not None,
            "idle_timeout is for a cluster; name one with cluster",
        )
        check(
            self.decision_log is None or bool(self.plan_ladder),
            "decision_log is for decisions between plans; name them with plan_ladder",
        )
        for name in ("decision_log", "trace_dir"):
            if getattr(self, name) is not None:
                of_kind = check_output_folder if name == "trace_dir" else check_output_file
                of_kind(name, getattr(self, name))
        check(
            self.kv_cache_memory is None or self.kv_cache_memory > 0,
            f"kv_cache_memory must be positive, got {self.kv_cache_memory}",
        )
