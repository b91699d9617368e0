"""``completion``: the scripts, run by the shells themselves where they are installed."""

import shutil
import subprocess

import pytest

from lora_np.cli import VERBS, load_verb
from lora_np.cli.completion import SHELLS, Command, Option, fish, zsh


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """The completions that bash itself finds for a line, in a folder with one file."""
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    folder = tmp_path_factory.mktemp("bash")
    (folder / "adapter.safetensors").touch()
    (folder / "script").write_text("\n".join(SHELLS["bash"]()))

    def complete(*words):
        quoted = " ".join(f'"{word}"' for word in ("lora-np", *words))
        code = f"source ./script; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _lora_np; echo ${{COMPREPLY[@]}}"
        result = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        assert result.stderr == ""
        return result.stdout.split()

    return complete


def test_bash_completes_commands(bash):
    assert bash("") == [*VERBS, "--help", "--version"]
    assert bash("co") == ["combine", "convert", "completion"]
    assert bash("--v") == ["--version"]


@pytest.mark.parametrize("verb", VERBS)
def test_bash_completes_the_options_of_each_command(bash, verb):
    assert {"-h", "--help"} <= set(bash(verb, "-"))
    assert bash(verb, "--hel") == ["--help"]


def test_bash_completes_options_choices_and_nothing_where_files_belong(bash):
    assert bash("merge", "base", "--ver") == ["--verify"]
    assert bash("inspect", "merge", "--pl") == ["--plot"]
    assert bash("completion", "") == list(SHELLS)
    assert bash("demo", "t") == ["text"]
    assert bash("merge", "") == []  # readline then completes file names


def test_bash_completes_file_names_where_there_are_no_words(tmp_path):
    """An interactive bash, in which the tabulator key is pressed twice."""
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    (tmp_path / "script").write_text("\n".join(SHELLS["bash"]()))
    (tmp_path / "adapter.safetensors").touch()
    typed = 'source ./script; lora-np() { echo "<$*>"; }\nlora-np mer\tadap\t-o out\nexit\n'
    shell = ["bash", "--norc", "--noprofile", "-i"]
    result = subprocess.run(
        shell, cwd=tmp_path, input=typed, capture_output=True, text=True, env={"TERM": "dumb", "PS1": ""}
    )
    assert "<merge adapter.safetensors -o out>" in result.stdout + result.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_their_scripts(shell, run, tmp_path):
    script = run("completion", shell)
    for name in VERBS:
        assert load_verb(name).summary.partition("'")[0] in script
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_characters_with_a_meaning_in_a_shell_are_quoted(monkeypatch):
    option = Option(("--odds",), "between [0, 1], the user's", True, ())
    monkeypatch.setattr("lora_np.cli.completion.commands", lambda: [Command("bet", "what's best", (option,))])
    assert any(r"""'--odds[between \[0, 1\], the user'"'"'s]:value:_files'""" in line for line in zsh())
    assert list(fish())[-1].endswith(r"-l odds -r -d 'between [0, 1], the user\'s'")


def test_options_choices_and_words_of_a_command_in_each_shell(monkeypatch):
    options = (
        Option(("-o", "--odds"), "odds", True, ()),
        Option(("--coin",), "coin", True, ("euro", "penny")),
        Option((), "side", True, ("heads", "tails")),
        Option(("--twice",), "again", False, ()),
    )
    command = Command("bet", "bet on a coin", options)
    monkeypatch.setattr("lora_np.cli.completion.commands", lambda: [command, Command("end", "end", ())])
    found = {name: [line.strip() for line in script()] for name, script in SHELLS.items()}
    assert found["bash"][4:9] == [
        '*" bet --coin") words="euro penny" ;;',
        '*" bet "*) words="heads tails"',
        '[[ "$word" != -* ]] || words="-o --odds --coin --twice" ;;',
        '*" end "*) words=""',
        '[[ "$word" != -* ]] || words="" ;;',
    ]
    specs = "'-o[odds]:value:_files' '--odds[odds]:value:_files' '--coin[coin]:value:(euro penny)' '--twice[again]'"
    assert f"bet) _arguments {specs} '*: :(heads tails)' ;;" in found["zsh"]
    assert "end) _arguments '*:file:_files' ;;" in found["zsh"]
    start = "complete -c lora-np -n '__fish_seen_subcommand_from bet'"
    assert found["fish"][-4:] == [
        f"{start} -f -a 'heads tails'",
        f"{start} -s o -l odds -r -d 'odds'",
        f"{start} -l coin -x -a 'euro penny' -d 'coin'",
        f"{start} -l twice -d 'again'",
    ]


def test_an_unknown_shell(misuse):
    assert "argument SHELL: invalid choice: 'tcsh'" in misuse("completion", "tcsh")
