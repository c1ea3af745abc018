"""What a test's process has in memory."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def resident() -> int:
    """Bytes of this process that lie in memory now."""
    found = re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
