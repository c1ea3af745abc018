"""A model whose chat template does what the template of a hostile model might."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fjx.models.loading.source import resolve
from fjx.models.tokenizer import load_tokenizer

BOMBS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "searches": ("{% set s = 'a' * 10**6 %}{% for i in range(99999) %}{{ 'ab' in s }}{% endfor %}"),
    "copies": (
        "{% set s = '\u00e9' * 10**6 %}"
        "{% for i in range(99999) %}{% set t = s.title().swapcase() %}{% endfor %}"
    ),
    "sorting": "{% for i in range(99999) %}{{ (range(9999)|list)|sort|first }}{% endfor %}",
    "output": "{% set s = 'a' * 10**6 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
}
"""Each without an end, but for what stops templates; a request names one in its
``chat_template_kwargs``."""


def with_bombs(model: str, folder: Path) -> str:
    """A GGUF model's copy in ``folder``, whose template has the bombs; other models as they are."""
    source = resolve(model)
    if source.kind != "gguf":
        return model
    template = "{% if false %}"
    for name, bomb in BOMBS.items():
        template += f"{{% elif bomb == '{name}' %}}{bomb}"
    template += f"{{% else %}}{load_tokenizer(source).chat_template}{{% endif %}}"
    copy = folder / "model.gguf"
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", source.path, copy]
    command += ["--chat-template", template]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return str(copy)
