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

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Padded numbers of rows in a step."""
        return self._buckets(self.max_num_batched_tokens)

    @property
    def sample_buckets(self) -> tuple[int, ...]:
        """Padded numbers of rows that choose a token."""
        return self._buckets(self.max_num_seqs)

    @property
    def coarse_sample_buckets(self) -> tuple[int, ...]:
        """Fewer sizes, for the programs that only sampled, edited or scored rows need."""
        fine = self.sample_buckets
        return (
            *(size for size in fine[:-1] if size.bit_length() % 2 and size.bit_count() == 1),
            fine[-1],
        )

    def layout(self, rows: int) -> StepLayout:
        """How the integers of a step of so many (padded) rows lie."""
        return StepLayout(
            rows=rows,
            requests=min(rows, self.max_num_seqs),
            pages=-(-self.max_model_len // self.page_size),
            slots=self.sample_buckets[-1],
        )

    def _buckets(self, largest: int) -> tuple[int, ...]:
        buckets = row_buckets(largest)
        return buckets[-1:] if self.one_bucket else buckets
