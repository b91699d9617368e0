"""Make tests/models/data/smollm2.json: what transformers computes with SmolLM2-135M-Instruct in float32.

The file is part of the repository; this script documents its origin. It requires torch and transformers, which lora_np does
not depend on. The weights are those that lora_np decodes from the GGUF file, so that the numbers test the model and not the
decoding, which is tested by hand. Of the logits of the token after each prompt, every 3072nd is stored.

    python -m pip install torch==2.13.0 transformers==5.24.0 tokenizers
    scripts/get_smollm2 smollm2
    python scripts/make_smollm2_data.py smollm2
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lora_np.text import Tokenizer
from tests.models.smollm2 import FILE, PROMPTS, in_transformers

TARGET = Path(__file__).parents[1] / "tests" / "models" / "data" / "smollm2.json"
NEW = 24


def main(folder: str) -> None:
    import torch

    model, tokenizer = in_transformers(Path(folder) / FILE), Tokenizer.from_gguf(Path(folder) / FILE)
    cases = []
    for prompt in PROMPTS:
        ids = torch.tensor(tokenizer.encode(prompt))
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
            tokens = model.generate(ids, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :]
        numbers = {"logits": logits[::3072].tolist(), "scale": float(logits.abs().max())}
        cases.append({"prompt": prompt, "ids": ids[0].tolist(), **numbers, "tokens": tokens.tolist()})
    lines = ",\n".join(json.dumps(case) for case in cases)
    TARGET.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
