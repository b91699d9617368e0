import json
from typing import final

import numpy as np
import pytest

from lora_np import ActivationLayer, DenseLayer, DyLoRAAdapter, FullyConnectedLayer, LoRALayer, MultiLoRAAdapter
from lora_np.cli import gradcheck, main
from lora_np.cli.gradcheck import Case
from lora_np.functions.activations import ACTIVATIONS
from lora_np.layers import Layer


@final
class Wrong(Layer):
    """``y = 2 x + b``, whose gradients may have relative errors."""

    parameter_names = ("bias",)

    def __init__(self, error_of_input=0.0, error_of_bias=0.0):
        super().__init__(3, 3)
        self.bias = np.zeros(3)
        self.errors = error_of_input, error_of_bias

    def apply(self, x, run):
        return 2 * x + self.bias, ()

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        of_input, of_bias = self.errors
        return 2 * dy * (1 + of_input), {"bias": dy.sum(axis=0) * (1 + of_bias)}

    def estimate_flops(self):
        return 6


def plant(monkeypatch, *layers):
    monkeypatch.setattr(gradcheck, "cases", lambda: [Case(f"planted {i}", layer, (4,)) for i, layer in enumerate(layers)])


def test_every_gradient_of_the_package_is_correct(capsys):
    assert main(["gradcheck", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    *rows, blank, verdict = lines[2:]
    assert blank == ""
    assert all(row.endswith("  ok") for row in rows)
    last = [lines[0].index(name) + len(name) - 1 for name in ("cases", "largest relative error")]
    assert all(row[column].isdigit() for row in rows for column in last)  # numbers are flush right
    assert verdict.endswith(" gradients checked with the complex step: all correct to a relative error of 1e-09")
    kinds = {row.split("  ")[0] for row in rows}
    assert kinds == {
        "DenseLayer",
        "FullyConnectedLayer",
        *(f"ActivationLayer {activation.name}" for activation in ACTIVATIONS),
        "Sequential",
        "LoRALayer",
        "VeRALayer",
        "StandardLoRAAdapter",
        "VeRAAdapter",
        "DoRAAdapter",
        "DyLoRAAdapter full",
        "DyLoRAAdapter frozen",
        "MultiLoRAAdapter switched",
        "MultiLoRAAdapter mixed batch",
    }


def test_the_cases_are_not_square_and_cover_every_setting():
    cases = list(gradcheck.cases())
    assert all(
        case.layer.input_size != case.layer.output_size for case in cases if not isinstance(case.layer, ActivationLayer)
    )
    for layout in (DenseLayer, FullyConnectedLayer):
        assert {case.layer.activation for case in cases if isinstance(case.layer, layout)} == set(ACTIVATIONS)
    assert {case.layer.scaling_rule for case in cases if isinstance(case.layer, LoRALayer)} == {"max", "paper", "rslora"}
    dylora = [case for case in cases if isinstance(case.layer, DyLoRAAdapter)]
    seen = {
        (a.mode, a.lora_layer.scaling_rule, a.is_base_layer_frozen, rank == a.max_rank)
        for a, rank in ((case.layer, case.rank or case.layer.current_deployment_rank) for case in dylora)
    }
    assert len(seen) == 2 * 3 * 2 * 2
    assert all(case.training and case.active_only for case in dylora if case.layer.mode == "frozen")
    assert not any(case.active_only for case in cases if case.kind != "DyLoRAAdapter frozen")
    assert [gradcheck._ranks(*sizes) for sizes in ((7, 4), (3, 6), (4, 2))] == [[1, 2, 4], [1, 2, 3], [1, 2]]
    multilora = [case for case in cases if isinstance(case.layer, MultiLoRAAdapter)]
    assert {tuple(case.layer.task_adapters) for case in multilora} == {("a", "b", "c")}  # no row is of task c


@pytest.mark.parametrize(("errors", "wrong"), [((1e-3, 0), ["input"]), ((0, 1e-3), ["bias"]), ((np.nan, 0), ["input"])])
def test_a_wrong_gradient_exits_with_code_1(monkeypatch, capsys, errors, wrong):
    plant(monkeypatch, Wrong(), Wrong(*errors))
    assert main(["gradcheck"]) == 1
    *_, verdict = lines = capsys.readouterr().out.splitlines()
    assert verdict.endswith("wrong: " + ", ".join(f"planted 1 {name}" for name in wrong))
    assert [line.split()[2] for line in lines if "WRONG" in line] == wrong

    assert main(["gradcheck", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [row["array"] for row in report["gradients"] if not row["ok"]] == wrong
    assert report["ok"] is False


def test_rows_are_grouped_by_kind(capsys, monkeypatch):
    cases = [Case("one", Wrong(), (2,)), Case("two", DenseLayer(3, 2, rng=0), (2,)), Case("one", Wrong(), (3,))]
    monkeypatch.setattr(gradcheck, "cases", lambda: cases)
    assert main(["gradcheck", "--json", "--seed", "5"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["seed"], report["limit"]) == (True, 5, 1e-9)
    rows = [(row["kind"], row["array"], row["cases"], row["ok"]) for row in report["gradients"]]
    assert rows == [
        ("one", "input", 2, True),
        ("one", "bias", 2, True),
        ("two", "input", 1, True),
        ("two", "weight", 1, True),
        ("two", "bias", 1, True),
    ]
    assert all(0 <= row["error"] < 1e-12 for row in report["gradients"])


def test_a_nonfinite_error_is_null_in_json(monkeypatch, capsys):
    plant(monkeypatch, Wrong(np.nan, 0))
    main(["gradcheck", "--json"])
    rows = json.loads(capsys.readouterr().out)["gradients"]
    assert {row["array"]: row["error"] is None for row in rows} == {"input": True, "bias": False}


def test_an_error_is_one_line(monkeypatch, capsys):
    plant(monkeypatch, Wrong())
    monkeypatch.setattr(Wrong, "vjp", lambda self, dy, cache, **wanted: (dy, {"bias": np.zeros(2)}))
    assert main(["gradcheck"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lora-np: error: ")
    assert "(2,)" in captured.err
    assert captured.err.count("\n") == 1
