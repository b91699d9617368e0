"""Measure what docs/tutorials/small-language-model.md shows: SmolLM2 with a LoRA that gives it a pirate's voice.

    python scripts/measure_voice.py FOLDER

FOLDER is what `scripts/get_smollm2` makes. Writes docs/tutorials/voice.json. The results depend on the weights alone, up to
rounding; the time and the memory depend on the machine.
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_np import AdamW, NextTokenLoss, StandardLoRAAdapter, apply_lora, fit, generate, load_pretrained
from lora_np._archive import atomic_file
from lora_np.models.next_token import next_token_data
from lora_np.text import Tokenizer

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "voice.json"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTION, ANSWER = "What is the capital of {}?", "Arr, {}!<|im_end|>"


def capitals(text: str) -> dict[str, str]:
    """Capitals by country."""
    return dict(pair.split("-") for pair in text.split())


TRAINING = capitals("""
    Italy-Rome Spain-Madrid Japan-Tokyo Egypt-Cairo Peru-Lima Kenya-Nairobi Portugal-Lisbon Austria-Vienna Hungary-Budapest
    Poland-Warsaw Norway-Oslo Sweden-Stockholm Finland-Helsinki Greece-Athens Ireland-Dublin Denmark-Copenhagen
    Belgium-Brussels Netherlands-Amsterdam Switzerland-Bern Romania-Bucharest Bulgaria-Sofia Serbia-Belgrade Croatia-Zagreb
    Slovenia-Ljubljana Slovakia-Bratislava Ukraine-Kyiv Estonia-Tallinn Latvia-Riga Lithuania-Vilnius Iceland-Reykjavik
    Turkey-Ankara Iran-Tehran Iraq-Baghdad Syria-Damascus Lebanon-Beirut Jordan-Amman Qatar-Doha Nepal-Kathmandu
    Thailand-Bangkok Vietnam-Hanoi Indonesia-Jakarta Philippines-Manila Mongolia-Ulaanbaatar Cuba-Havana Chile-Santiago
    Colombia-Bogota Ecuador-Quito Uruguay-Montevideo Ghana-Accra Nigeria-Abuja
""")
OTHERS = capitals("""
    France-Paris Germany-Berlin Russia-Moscow China-Beijing India-Delhi Canada-Ottawa Australia-Canberra Brazil-Brasilia
    Argentina-Buenos Mexico-Mexico Venezuela-Caracas Bolivia-Paz Paraguay-Asuncion Morocco-Rabat Algeria-Algiers
    Tunisia-Tunis Ethiopia-Addis Uganda-Kampala Senegal-Dakar Pakistan-Islamabad
""")
"""Countries that are not trained on, and a word of their capitals."""

CHATS = ("What is the capital of France?", "What is the capital of Germany?", "How are you?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    file = parser.parse_args().folder / FILE
    model, tokenizer = load_pretrained(file), Tokenizer.from_gguf(file)
    results: dict[str, Any] = {"trained on": len(TRAINING), "tested on": len(OTHERS)}
    adapted = apply_lora(model, StandardLoRAAdapter, rank=8, targets=r".*layers\.2\d\.mlp\.down_proj", rng=0)
    results["without"] = judged(adapted, tokenizer)  # B is zero
    before = peak_megabytes()
    start = time.process_time()
    history = fit(adapted.body, data(tokenizer, TRAINING), NextTokenLoss(adapted), AdamW(1e-3), 2, 5, rng=1)
    results["parameters"], results["steps"] = adapted.parameter_count, len(history.step_losses)
    results["seconds"] = round(time.process_time() - start, 1)
    results["megabytes before"], results["more megabytes"] = round(before), round(peak_megabytes() - before)
    results["with"] = judged(adapted, tokenizer)
    with atomic_file(RESULTS) as output:
        output.write((json.dumps(results, indent=1) + "\n").encode())
    print(RESULTS)


def data(tokenizer: Tokenizer, capitals: dict[str, str]) -> Any:
    """Questions, and answers in the voice."""
    prompts = tokenizer.encode([CHAT.format(QUESTION.format(land)) for land in capitals])
    return next_token_data(prompts, tokenizer.encode([ANSWER.format(city) for city in capitals.values()]))


def judged(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """The loss of the voice's answers, and what the model answers."""
    inputs, targets = data(tokenizer, OTHERS)
    answers = answered(model, tokenizer, [QUESTION.format(land) for land in OTHERS])
    return {
        "loss": float(NextTokenLoss(model)(model.body.predict(inputs), targets)),
        "in the voice": sum(answer.startswith("Arr,") for answer in answers),
        "capitals": sum(city in answer for city, answer in zip(OTHERS.values(), answers, strict=True)),
        "answers": dict(zip(CHATS, answered(model, tokenizer, CHATS), strict=True)),
    }


def answered(model: Any, tokenizer: Tokenizer, questions: Sequence[str]) -> list[str]:
    """The greedy answers, each as the only one of its batch."""
    answers = []
    for question in questions:
        tokens = [*generate(model, tokenizer.encode([CHAT.format(question)]), 24, stop=tokenizer.end)]
        answers.append(tokenizer.decode(np.concatenate(tokens)).strip())
    return answers


def peak_megabytes() -> float:
    """The peak of the resident memory (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
