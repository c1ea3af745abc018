"""The sizes that programs are compiled for."""

from __future__ import annotations

from dataclasses import dataclass

from fjx.pipeline.batch import StepLayout
from fjx.pipeline.buckets import row_buckets


@dataclass(frozen=True)
class Limits:
    """The sizes that programs are compiled for."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_pages: int
    page_size: int
    bias_entries: int
    """Logit-bias entries of one request."""
    one_bucket: bool = False
    """Pad every step to the largest size (batch-invariant mode)."""
    max_draft_rows: int = 0
    """Most drafted tokens verified in one step; 0: nothing is ever drafted."""
    hidden: bool = False
    """Whether steps also return the residual stream of all rows, which a draft head reads."""
    confidences: bool = False
    """Whether the probability of each chosen token is returned, as is that of a draft model's."""

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Padded numbers of rows in a step."""
        return self._buckets(self.max_num_batched_tokens)

    @property
    def sample_buckets(self) -> tuple[int, ...]:
        """Padded numbers of rows that choose a token."""
        return self._buckets(self.max_num_seqs + self.max_draft_rows)

    @property
    def coarse_sample_buckets(self) -> tuple[int, ...]:
        """Fewer sizes, for the programs that only sampled, edited or scored rows need: powers of 4,
        or of 2 where a single request can bring several rows to verify."""
        fine = self.sample_buckets
        powers = (size for size in fine[:-1] if size >= 4 and size.bit_count() == 1)
        return (
            *(size for size in powers if self.max_draft_rows or size.bit_length() % 2),
            fine[-1],
        )

    def layout(self, rows: int) -> StepLayout:
        """How the integers of a step of so many (padded) rows lie."""
        return StepLayout(
            rows=rows,
            requests=min(rows, self.max_num_seqs),
            pages=-(-self.max_model_len // self.page_size),
            slots=self.max_num_seqs,
            samples=self.sample_buckets[-1],
        )

    def _buckets(self, largest: int) -> tuple[int, ...]:
        buckets = row_buckets(largest)
        return buckets[-1:] if self.one_bucket else buckets
