"""Make the golden logits of tests/accuracy with Hugging Face Transformers.

fjx depends on neither torch nor Transformers, so run this in an environment of its own:

    python -m venv goldens-env
    goldens-env/bin/pip install torch==2.13.0 "transformers>=5,<6" numpy
    goldens-env/bin/python scripts/make_goldens.py

It writes one small .npz for each model of tests/accuracy/golden_models.py. Weights are not stored:
they are drawn again from their names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

ACCURACY = Path(__file__).resolve().parents[1] / "tests" / "accuracy"
sys.path.insert(0, str(ACCURACY))

import golden_models  # noqa: E402


def make_golden(name: str) -> None:
    config_json = dict(golden_models.CONFIGS[name])
    config = transformers.AutoConfig.for_model(**config_json)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    parameters = dict(model.named_parameters())  # tied ones once
    shapes = {key: tuple(parameter.shape) for key, parameter in parameters.items()}
    arrays: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for key, weight in golden_models.random_weights(shapes).items():
            parameters[key].copy_(torch.from_numpy(weight))
        for i, tokens in enumerate(golden_models.random_prompts(name)):
            logits = model(torch.from_numpy(tokens)[None].long()).logits[0]
            arrays[f"tokens_{i}"] = tokens
            arrays[f"logits_{i}"] = logits.numpy()
    about = {
        "shapes": shapes,
        "saved_config": config.to_dict(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    path = ACCURACY / "goldens" / f"{name}.npz"
    np.savez_compressed(path, about=json.dumps(about), **arrays)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    torch.manual_seed(0)
    for name in golden_models.CONFIGS:
        make_golden(name)
