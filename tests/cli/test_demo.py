import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from lora_np import DyLoRAAdapter, load_layer
from lora_np.cli import demo as verb
from lora_np.cli import main
from lora_np.data import load_digits
from lora_np.demo import command, report
from lora_np.demo.base import train_base
from lora_np.demo.checks import Check
from lora_np.demo.digits import Digits, inverted, mirrored, rotated, shifted, upright
from lora_np.demo.parameters import count
from lora_np.demo.ranks import Curve, RankResult, canonicalize_branches, compare_ranks, train_lora, with_dylora
from lora_np.demo.samples import sample
from lora_np.demo.settings import Settings
from lora_np.demo.training import Score, score
from tests.cli.toolbox import first_numbers

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
    monkeypatch.setattr(verb, "Settings", TINY)


@pytest.fixture(scope="module")
def trained():
    """Digits, base and a model with an adapter."""
    settings = TINY(seed=2)
    digits = Digits(settings)
    base = train_base(digits, settings)[1]
    return digits, base, compare_ranks(base, digits, settings)


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if "seconds" not in name}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def test_the_whole_demo(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["demo", "--output", str(tmp_path / "new" / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for title in ("Base", "DyLoRA", "MultiLoRA", "Merging", "Trainable parameters", "Checks"):
        assert f"\n{title}" in f"\n{captured.out}"
    numbers = ["accuracy", "rank 1", "rank 1", "base alone", "adapters", "parameters", "measured"]
    assert first_numbers(captured.out) == numbers
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


def test_dylora_may_have_a_sorted_start(tmp_path, capsys):
    usual, found = (
        json.loads(capsys.readouterr().out)["ranks"]
        for options in ([], ["--sorted-start"])
        if main(["demo", "--json", "--no-plots", "--output", str(tmp_path), *options]) == 0
    )
    assert found["dylora"]["scores"] != usual["dylora"]["scores"]
    assert found["dedicated"]["scores"] == usual["dedicated"]["scores"]


def test_the_form_of_the_json(tmp_path, capsys):
    assert main(["demo", "--json", "--no-plots", "--output", str(tmp_path)]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert list(numbers) == ["ok", "settings", "base", "ranks", "sharing", "merging", "parameters", "checks", "files"]
    assert numbers["ok"] is True
    assert numbers["files"] == ["base.npz", "dylora.npz", "multilora.npz"]
    assert numbers["settings"]["ranks"] == numbers["ranks"]["ranks"] == [1, 3]
    for name, trainings in {"dylora": 1, "dedicated": 2, "truncated": 1, "truncated_by_svd": 1}.items():
        curve = numbers["ranks"][name]
        assert len(curve["scores"]) == 2
        assert all(0 <= score["accuracy"] <= 1 and score["nll"] > 0 for score in curve["scores"])
        assert len(curve["seconds"]) == trainings
        assert min(curve["seconds"]) > 0
    scores = {name: numbers["ranks"][name]["scores"] for name in ("dylora", "dedicated", "truncated", "truncated_by_svd")}
    assert scores["truncated"][-1] == scores["dedicated"][-1]
    assert scores["truncated_by_svd"][-1]["nll"] == pytest.approx(scores["truncated"][-1]["nll"])
    assert numbers["ranks"]["gain"] == scores["dylora"][0]["accuracy"] - scores["truncated"][0]["accuracy"]
    assert [task["task"] for task in numbers["sharing"]["tasks"]] == ["rotated", "inverted", "mirrored"]
    for task in numbers["sharing"]["tasks"]:
        assert task["changed_bytes"] == task["changed_output"] == 0
        assert task["accuracy"] == task["final_accuracy"]
    assert np.shape(numbers["sharing"]["accuracies"]) == (4, 4)
    assert [result["layers"] for result in numbers["merging"]] == [3] * 5
    assert all(check["ok"] and 0 <= check["value"] <= check["limit"] for check in numbers["checks"])
    assert {check["limit"] for check in numbers["checks"]} == {0, 1e-9}


def test_parameters_are_counted(trained):
    _, base, _ = trained
    counts = {row.method: row.parameters for row in count(base, TINY())}
    sizes = 64 + 12, 12 + 12, 12 + 10
    assert counts == {
        "full fine-tuning": 64 * 12 + 12 + 12 * 12 + 12 + 12 * 10 + 10,
        "rank-1 LoRA": sum(sizes),
        "rank-3 LoRA": 3 * sum(sizes),
        "DyLoRA, ranks up to 3": 3 * sum(sizes),
        "rank-2 MultiLoRA, per task": 2 * sum(sizes),
    }


def test_the_views():
    images = np.arange(8.0).reshape(2, 2, 2) / 8
    np.testing.assert_array_equal(rotated(images)[0] * 8, [[1, 3], [0, 2]])
    np.testing.assert_array_equal(mirrored(images)[0] * 8, [[1, 0], [3, 2]])
    np.testing.assert_array_equal(inverted(images)[0] * 8, [[8, 7], [6, 5]])
    np.testing.assert_array_equal(shifted(images)[0] * 8, [[7, 5], [8, 6]])
    np.testing.assert_array_equal(upright(images), images)


def test_training_and_test_rows_are_all_rows_once():
    digits = Digits(TINY())
    rows = [digits.training(upright).inputs, digits.testing(upright).inputs]
    images, _ = load_digits()
    assert [len(part) for part in rows] == [197, 1600]
    np.testing.assert_array_equal(
        np.sort(np.concatenate(rows).sum(axis=1)), np.sort(images.reshape(len(images), -1).sum(axis=1))
    )


def test_truncation_keeps_the_leading_components(trained):
    digits, base, (result, _) = trained
    lora, _ = train_lora(base, digits, TINY(seed=2), rank=3)
    for layer in lora.layers:
        if hasattr(layer, "lora_layer"):
            layer.lora_layer.matrix_b[1:] = 0
    expected = score(lora, digits.testing(shifted))
    assert result.truncated.scores[0].accuracy == expected.accuracy
    assert result.truncated.scores[0].nll == pytest.approx(expected.nll)


def test_truncation_by_svd_is_nearest_in_weight(trained):
    _, base, _ = trained
    settings = TINY()
    model = with_dylora(base, settings.ranks, settings.generator())
    rng = np.random.default_rng(0)
    for adapter in (layer for layer in model.layers if isinstance(layer, DyLoRAAdapter)):
        adapter.lora_layer.matrix_b[...] = rng.normal(size=adapter.lora_layer.matrix_b.shape)
    adapter = model["hidden2"]
    whole = adapter.lora_layer.merge_weights()
    sizes = np.linalg.svd(whole, compute_uv=False)
    canonicalize_branches(model)
    np.testing.assert_allclose(adapter.lora_layer.merge_weights(), whole, atol=1e-12)
    missed = np.linalg.norm(whole - adapter.lora_layer.merge_weights(rank=1))
    assert missed == pytest.approx(np.linalg.norm(sizes[1:]))


def test_the_samples_hold_each_digit(trained):
    digits, base, (_, dylora) = trained
    samples = sample(base, dylora, digits, TINY())
    assert samples.labels.tolist() == list(range(10))
    np.testing.assert_array_equal(samples.shifted, 1 - np.rot90(samples.upright, axes=(1, 2)))
    assert [name for name, *_ in samples.predictions] == ["base", "base", "DyLoRA, rank 1", "DyLoRA, rank 3"]


def test_without_matplotlib_there_are_tables_and_a_hint(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
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
    assert captured.err == f"lora-np: error: --output must be a directory, but it is a file or inside one: {target}\n"
    assert file.read_text() == "kept"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_what_does_not_hold_is_exit_code_1(monkeypatch, tmp_path, capsys, arguments):
    monkeypatch.setattr(command, "difference", lambda *_: 0.25)
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
    return Curve("", tuple(Score(a, 0.1) for a in accuracies), (1.0, 2.0))


def test_the_verdict_is_what_was_measured():
    good = RankResult((1, 8), curve(0.9, 0.95), curve(0.92, 0.96), curve(0.2, 0.96), curve(0.5, 0.96), 0.02)
    assert report.verdict(good) == [
        "At rank 1, DyLoRA scores 70.0 points above the truncated rank-8 LoRA "
        "and 40.0 points above the one truncated by SVD.",
        "At rank 8, DyLoRA scores 1.0 points below the dedicated LoRA; the target, at most 2.0 points below, is met.",
        "The DyLoRA training run took 3.0 s, the 2 LoRA runs 3.0 s.",
    ]
    bad = replace(good, dylora=curve(0.1, 0.9))
    assert "10.0 points below the truncated rank-8 LoRA and 40.0 points below" in report.verdict(bad)[0]
    assert report.verdict(bad)[1].endswith("is NOT met.")
    better = replace(good, dylora=curve(0.9, 0.99))
    assert "3.0 points above the dedicated LoRA" in report.verdict(better)[1]
    assert report.verdict(better)[1].endswith("is met.")
