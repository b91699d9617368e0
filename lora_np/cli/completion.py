"""``lora-np completion``: scripts that complete the commands and options in a shell."""

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from . import VERBS, load_verb
from .verb import Verb

MAIN = ("--help", "--version")
"""The options without a command."""


@dataclass(frozen=True)
class Option:
    """One option or positional argument of a command."""

    names: tuple[str, ...]
    """Empty for a positional argument."""
    description: str
    takes_value: bool
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """One command, as a shell needs it."""

    name: str
    summary: str
    options: tuple[Option, ...]

    @property
    def names(self) -> list[str]:
        """The names of all options."""
        return [name for option in self.options for name in option.names]

    @property
    def words(self) -> list[str]:
        """The choices of the positional arguments."""
        return [word for option in self.options if not option.names for word in option.choices]


def commands() -> list[Command]:
    """All commands with their options."""
    return [_command(load_verb(name)) for name in VERBS]


def _command(verb: Verb) -> Command:
    parser = argparse.ArgumentParser(verb.name)
    verb.add_arguments(parser)
    options = [
        Option(
            tuple(action.option_strings),
            (action.help or "").replace("%%", "%"),
            action.nargs != 0,
            tuple(map(str, action.choices or ())),
        )
        for action in parser._actions
    ]
    return Command(verb.name, verb.summary, tuple(options))


# ---------------------------------------------------------------- one function for each shell


def bash() -> Iterator[str]:
    """The lines of the script for bash: words from a table, and file names where there are none."""
    yield "_lora_np() {"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}" words=""'
    yield '    case "$COMP_CWORD ${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD-1]}" in'
    yield f'        "1 "*) words="{" ".join([*VERBS, *MAIN])}" ;;'
    for command in commands():
        for option in command.options:
            if option.names and option.choices:
                patterns = "|".join(f'*" {command.name} {name}"' for name in option.names)
                yield f'        {patterns}) words="{" ".join(option.choices)}" ;;'
        yield f'        *" {command.name} "*) words="{" ".join(command.words)}"'
        yield f'            [[ "$word" != -* ]] || words="{" ".join(command.names)}" ;;'
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"
    yield "complete -o bashdefault -o default -F _lora_np lora-np"


def zsh() -> Iterator[str]:
    """The lines of the script for zsh."""
    yield "#compdef lora-np"
    yield "_lora_np() {"
    yield "    if (( CURRENT == 2 )); then"
    yield "        local -a verbs=("
    for command in commands():
        yield f"            {shlex.quote(f'{command.name}:{command.summary}')}"
    yield "        )"
    yield "        _describe command verbs"
    yield f"        compadd -- {' '.join(MAIN)}"
    yield "        return"
    yield "    fi"
    yield "    local verb=$words[2]"
    yield "    shift words; (( CURRENT-- ))"
    yield "    case $verb in"
    for command in commands():
        specs = [_zsh_option(name, option) for option in command.options for name in option.names]
        rest = f"*: :({' '.join(command.words)})" if command.words else "*:file:_files"
        yield f"        {command.name}) _arguments {' '.join(shlex.quote(spec) for spec in [*specs, rest])} ;;"
    yield "    esac"
    yield "}"
    yield "compdef _lora_np lora-np"


def _zsh_option(name: str, option: Option) -> str:
    described = option.description
    for character in r"\[]":
        described = described.replace(character, f"\\{character}")
    value = f":value:({' '.join(option.choices)})" if option.choices else ":value:_files"
    return f"{name}[{described}]" + (value if option.takes_value else "")


def fish() -> Iterator[str]:
    """The lines of the script for fish."""
    for name in MAIN:
        yield f"complete -c lora-np -n __fish_use_subcommand -l {name.removeprefix('--')}"
    for command in commands():
        yield f"complete -c lora-np -n __fish_use_subcommand -f -a {command.name} -d {_fish_quoted(command.summary)}"
    for command in commands():
        start = f"complete -c lora-np -n '__fish_seen_subcommand_from {command.name}'"
        if command.words:
            yield f"{start} -f -a '{' '.join(command.words)}'"
        for option in command.options:
            if option.names:
                names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
                value = f" -x -a '{' '.join(option.choices)}'" if option.choices else " -r" if option.takes_value else ""
                yield f"{start} {names}{value} -d {_fish_quoted(option.description)}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}

# ---------------------------------------------------------------- the verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=list(SHELLS), help=f"one of {', '.join(SHELLS)}")


def _run(arguments: argparse.Namespace) -> int:
    for line in SHELLS[arguments.shell]():
        print(line)
    return 0


COMPLETION = Verb(
    name="completion",
    summary="print a script that completes commands, options and file names in bash, zsh or fish",
    example='eval "$(lora-np completion bash)"                                   # in ~/.bashrc\n'
    'eval "$(lora-np completion zsh)"                                    # in ~/.zshrc, after compinit\n'
    "lora-np completion fish > ~/.config/fish/completions/lora-np.fish",
    add_arguments=_add_arguments,
    run=_run,
)
