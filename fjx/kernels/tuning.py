"""Parameters of GPU kernels that were measured to be the fastest.

They are looked up while a program is traced, by kernel, shape, GPU and version of JAX, and never
measured then: ``python scripts/gpu_check.py --tune`` does it, and keeps the fastest in fjx's cache
folder. What the package brings along (``tuned.json``) counts where nothing was measured.

Only parameters that leave every bit of a result as it is may be tuned: `TUNABLE` names them. What
sets the order of sums, such as attention's ``chunk``, must be the same for every shape: a row's
tokens would depend on what else is in its batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import jax

logger = logging.getLogger(__name__)

TUNABLE: Mapping[str, frozenset[str]] = {"attention": frozenset({"blocks", "stages"})}
"""For each kernel, the parameters that do not change a bit of its results."""
FILE = "tuned.json"
_SHIPPED = Path(__file__).with_name(FILE)


@dataclass(frozen=True)
class Tuned:
    """The fastest parameters of a kernel.

    Raises:
        ValueError: one of them is not `TUNABLE`, or not a positive integer.
    """

    kernel: str
    shape: str
    """As the kernel names it."""
    device: str
    """The kind, as JAX names it."""
    jax: str
    """Version."""
    parameters: Mapping[str, int]

    def __post_init__(self) -> None:
        allowed = TUNABLE.get(self.kernel, frozenset())
        for name, value in self.parameters.items():
            if name not in allowed:
                raise ValueError(
                    f"{name!r} of the kernel {self.kernel!r} cannot be tuned, only "
                    f"{', '.join(sorted(allowed)) or 'nothing'}: it could change results"
                )
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} of {self.kernel} is {value!r}, not a positive integer")

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is looked up by."""
        return self.kernel, self.shape, self.device, self.jax


_Table = dict[tuple[str, str, str, str], Tuned]
_tables: list[_Table] = []
"""The shipped one, and what `use` has put before it."""


def parameters(kernel: str, shape: str) -> Mapping[str, int]:
    """The fastest parameters here, as far as any were measured: what is not in it is the kernel's
    to choose."""
    if not _tables:
        _tables.append(_read(_SHIPPED))
    key = kernel, shape, jax.devices()[0].device_kind, jax.__version__
    found = next((table[key] for table in _tables if key in table), None)
    return {} if found is None else found.parameters


def use(folder: Path) -> None:
    """Look into this folder's table from now on, before the shipped one. A table that cannot be
    read is left out, with a warning: serving must not depend on it."""
    _tables[:] = [_read(_SHIPPED)]
    try:
        _tables.insert(0, _read(folder / FILE))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s is left out: %s; tune again, or delete the file", folder / FILE, error)


def keep(folder: Path, tuned: Iterable[Tuned]) -> None:
    """Put measured parameters into a folder's table, in place of older ones."""
    try:
        table = _read(folder / FILE)
    except (FileNotFoundError, ValueError, TypeError):
        table = {}
    table |= {each.key: each for each in tuned}
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{FILE}.new"
    whole.write_text(json.dumps([asdict(each) for each in table.values()], indent=1) + "\n")
    whole.replace(folder / FILE)


def _read(path: Path) -> _Table:
    entries = (Tuned(**entry) for entry in json.loads(path.read_text()))
    return {each.key: each for each in entries}
