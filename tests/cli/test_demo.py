import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from lora_np import DyLoRAAdapter, load_layer
from lora_np.cli import main
from lora_np.demo import command, experiment, report
from lora_np.demo.experiment import Check, Curve, Digits, RankResult, Score, Settings

TINY = partial(
    Settings,
    test_rows=1600,
    hidden=12,
    base_epochs=2,
    ranks=(1, 3),
    rank_epochs=2,
    task_rank=2,
    task_epochs=2,
    batch_size=32,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(command, "Settings", TINY)


@pytest.fixture(scope="module")
def trained():
    """Digits, base and a model with an adapter."""
    settings = TINY(seed=2)
    digits = Digits(settings)
    base = experiment.train_base(digits, settings)[1]
    return digits, base, experiment.compare_ranks(base, digits, settings)


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if "seconds" not in name}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def test_the_whole_demo(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["demo", "--output", str(tmp_path / "new" / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for title in ("The base", "DyLoRA", "MultiLoRA", "Merging", "Parameters that train", "What must hold"):
        assert title in captured.out
    names = {"base.npz", "dylora.npz", "multilora.npz", "ranks.png", "digits.png", "tasks.png"}
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == names
    assert all(name in captured.out.splitlines()[-1] for name in names)
    for name in ("ranks.png", "digits.png", "tasks.png"):
        assert (tmp_path / "new" / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules
    assert load_layer(tmp_path / "new" / "out" / "base.npz").input_size == 64


def test_json_is_the_same_for_the_same_seed(tmp_path, capsys):
    reports = []
    for seed in ("1", "1", "2"):
        assert main(["demo", "--json", "--no-plots", "--seed", seed, "--output", str(tmp_path)]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        reports.append(without_times(json.loads(captured.out)))
    assert reports[0] == reports[1] != reports[2]
    assert not list(tmp_path.glob("*.png"))


def test_the_form_of_the_json(tmp_path, capsys):
    assert main(["demo", "--json", "--no-plots", "--output", str(tmp_path)]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert list(numbers) == ["ok", "settings", "base", "ranks", "sharing", "merging", "parameters", "checks", "files"]
    assert numbers["ok"] is True
    assert numbers["files"] == ["base.npz", "dylora.npz", "multilora.npz"]
    assert numbers["settings"]["ranks"] == numbers["ranks"]["ranks"] == [1, 3]
    for name, trainings in {"dylora": 1, "dedicated": 2, "cut": 1, "best_cut": 1}.items():
        curve = numbers["ranks"][name]
        assert len(curve["scores"]) == 2
        assert all(0 <= score["accuracy"] <= 1 and score["nll"] > 0 for score in curve["scores"])
        assert len(curve["seconds"]) == trainings
        assert min(curve["seconds"]) > 0
    assert numbers["ranks"]["cut"]["scores"][-1] == numbers["ranks"]["dedicated"]["scores"][-1]
    assert numbers["ranks"]["best_cut"]["scores"][-1]["nll"] == pytest.approx(numbers["ranks"]["cut"]["scores"][-1]["nll"])
    gain = numbers["ranks"]["dylora"]["scores"][0]["accuracy"] - numbers["ranks"]["cut"]["scores"][0]["accuracy"]
    assert numbers["ranks"]["gain"] == gain
    assert [task["task"] for task in numbers["sharing"]["tasks"]] == ["rotated", "inverted", "mirrored"]
    for task in numbers["sharing"]["tasks"]:
        assert task["changed_bytes"] == task["changed_output"] == 0
        assert task["accuracy"] == task["final_accuracy"]
    assert np.shape(numbers["sharing"]["accuracies"]) == (4, 4)
    assert [result["layers"] for result in numbers["merging"]] == [3] * 5
    assert all(check["ok"] and 0 <= check["value"] <= check["limit"] for check in numbers["checks"])


def test_parameters_are_counted(trained):
    _, base, _ = trained
    counts = {count.what: count.parameters for count in experiment.count(base, TINY())}
    sizes = 64 + 12, 12 + 12, 12 + 10
    assert counts == {
        "full fine-tuning": 64 * 12 + 12 + 12 * 12 + 12 + 12 * 10 + 10,
        "LoRA of rank 1": sum(sizes),
        "LoRA of rank 3": 3 * sum(sizes),
        "DyLoRA up to rank 3": 3 * sum(sizes),
        "MultiLoRA of rank 2, each task": 2 * sum(sizes),
    }


def test_the_views():
    images = np.arange(8.0).reshape(2, 2, 2) / 8
    np.testing.assert_array_equal(experiment.rotated(images)[0] * 8, [[1, 3], [0, 2]])
    np.testing.assert_array_equal(experiment.mirrored(images)[0] * 8, [[1, 0], [3, 2]])
    np.testing.assert_array_equal(experiment.inverted(images)[0] * 8, [[8, 7], [6, 5]])
    np.testing.assert_array_equal(experiment.shifted(images)[0] * 8, [[7, 5], [8, 6]])
    np.testing.assert_array_equal(experiment.upright(images), images)


def test_training_and_test_rows_are_all_rows_once():
    digits = Digits(TINY())
    rows = [digits.training(experiment.upright).inputs, digits.testing(experiment.upright).inputs]
    images, _ = experiment.load_digits()
    assert [len(part) for part in rows] == [197, 1600]
    np.testing.assert_array_equal(
        np.sort(np.concatenate(rows).sum(axis=1)), np.sort(images.reshape(len(images), -1).sum(axis=1))
    )


def test_a_cut_keeps_the_first_components(trained):
    digits, base, (result, _) = trained
    settings = TINY(seed=2)
    rows, test = digits.training(experiment.shifted), digits.testing(experiment.shifted)
    rng = settings.generator(experiment.LORA, 3)
    lora = experiment._with_lora(base, 3, rng)
    experiment.train(lora, rows, settings.rank_epochs, settings.learning_rate, settings.batch_size, rng, ())
    for layer in lora.layers:
        if hasattr(layer, "lora_layer"):
            layer.lora_layer.matrix_b[1:] = 0
    expected = experiment.score(lora, test)
    assert result.cut.scores[0].accuracy == expected.accuracy
    assert result.cut.scores[0].nll == pytest.approx(expected.nll)


def test_the_best_cut_is_nearest_in_weight(trained):
    _, base, _ = trained
    settings = TINY()
    model = experiment._with_dylora(base, settings, settings.generator())
    rng = np.random.default_rng(0)
    for adapter in (layer for layer in model.layers if isinstance(layer, DyLoRAAdapter)):
        adapter.lora_layer.matrix_b[...] = rng.normal(size=adapter.lora_layer.matrix_b.shape)
    adapter = model["hidden2"]
    whole = adapter.lora_layer.merge_weights()
    sizes = np.linalg.svd(whole, compute_uv=False)
    experiment._sort_components(model)
    np.testing.assert_allclose(adapter.lora_layer.merge_weights(), whole, atol=1e-12)
    missed = np.linalg.norm(whole - adapter.lora_layer.merge_weights(rank=1))
    assert missed == pytest.approx(np.linalg.norm(sizes[1:]))


def test_the_samples_hold_each_digit(trained):
    digits, base, (_, dylora) = trained
    samples = experiment.sample(base, dylora, digits)
    assert samples.labels.tolist() == list(range(10))
    np.testing.assert_array_equal(samples.shifted, 1 - np.rot90(samples.upright, axes=(1, 2)))
    assert [name for name, *_ in samples.predictions] == ["base", "base", "DyLoRA, rank 1", "DyLoRA, rank 3"]


def test_without_matplotlib_there_are_tables_and_a_hint(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["demo", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "MultiLoRA" in out
    assert out.splitlines()[-1].endswith('pip install "lora_np[plot]"')
    assert not list(tmp_path.glob("*.png"))


def test_without_pictures_there_is_no_hint(tmp_path, capsys):
    assert main(["demo", "--no-plots", "--output", str(tmp_path)]) == 0
    assert "matplotlib" not in capsys.readouterr().out


@pytest.mark.parametrize("inside", [False, True])
def test_an_output_that_is_a_file_is_one_clear_line(tmp_path, capsys, inside):
    file = tmp_path / "file"
    file.write_text("kept")
    target = file / "out" if inside else file
    assert main(["demo", "--output", str(target)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"lora-np: error: --output must be a directory, and a file is in its way: {target}\n"
    assert file.read_text() == "kept"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_what_does_not_hold_is_exit_code_1(monkeypatch, tmp_path, capsys, arguments):
    monkeypatch.setattr(experiment, "difference", lambda *_: 0.25)
    assert main(["demo", "--no-plots", "--output", str(tmp_path), *arguments]) == 1
    out = capsys.readouterr().out
    if arguments:
        numbers = json.loads(out)
        assert numbers["ok"] is False
        assert [check["ok"] for check in numbers["checks"]].count(False) == 3
    else:
        assert out.count("FAILED") == 3


def test_a_difference_that_is_not_a_number_does_not_hold():
    assert not Check("", float("nan"), 1).ok


def curve(*accuracies):
    return Curve("LoRA of rank 8, cut", tuple(Score(a, 0.1) for a in accuracies), (1.0, 2.0))


def test_the_verdict_is_what_was_measured():
    good = RankResult((1, 8), curve(0.9, 0.95), curve(0.92, 0.96), curve(0.2, 0.96), curve(0.5, 0.96), 0.02)
    assert report.verdict(good) == [
        "At rank 1, DyLoRA is 70.0 points above the LoRA of rank 8, cut, and 40.0 points above its best cut.",
        "At rank 8, DyLoRA is 1.0 points below the LoRA trained for that rank alone; "
        "the margin of 2.0 points below is kept.",
        "Its one training took 3.0 s, the 2 trainings of LoRAs 3.0 s.",
    ]
    bad = replace(good, dylora=curve(0.1, 0.9))
    assert "10.0 points below the LoRA of rank 8, cut, and 40.0 points below" in report.verdict(bad)[0]
    assert report.verdict(bad)[1].endswith("NOT kept.")
    better = replace(good, dylora=curve(0.9, 0.99))
    assert "3.0 points above the LoRA trained for that rank" in report.verdict(better)[1]
    assert report.verdict(better)[1].endswith("is kept.")
