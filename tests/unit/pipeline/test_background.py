"""What the process keeps of what it has compiled, and what it lets go."""

from __future__ import annotations

import gc
import weakref

from fjx.pipeline.background import keep_heap, release_heap


class Held:
    """Something in a circle, as an engine is: only the garbage collector can let it go."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_kept_goes_once_it_is_released() -> None:
    held = Held()
    reference = weakref.ref(held)
    try:
        keep_heap()
        del held
        gc.collect()
        assert reference() is not None
    finally:
        release_heap()
    gc.collect()
    assert reference() is None
