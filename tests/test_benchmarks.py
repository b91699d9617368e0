"""The benchmarks run, check before they time, and report what they measured; how fast anything is, is not tested here."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare, merge_checkpoint, ours, peers, processes
from benchmarks.cases import GROUPS, cold_start, multilora, step, training, transformer
from benchmarks.encoders import Encoder, SentenceProblem, checkpoint
from benchmarks.groups import Group, Row, Settings, timed
from benchmarks.harness import Candidate, DisagreementError, Measure, check_agreement, interleave
from benchmarks.peers import JAX, PEFT, TEXTBOOK, textbook
from benchmarks.problem import FitProblem, MixedProblem, Problem
from benchmarks.report import tables
from benchmarks.results import Results

ROOT = Path(__file__).parents[1]
QUICK = Settings(rounds=2, quick=True)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


# ---------------------------------------------------------------- the command


def test_the_suite_measures_writes_and_draws(tmp_path):
    timed_ones = [group.name for group in GROUPS if group.unit == "s" and not group.name.endswith("start")]
    result = run("--quick", "--only", ",".join(timed_ones), "--json", tmp_path / "results.json", "--docs", tmp_path)
    assert result.returncode == 0, result.stderr
    results = Results.load(tmp_path / "results.json")
    assert list(results.groups) == timed_ones
    for group in GROUPS:
        if group.name in timed_ones:
            rows = results.groups[group.name]
            assert rows
            assert all(value.median > 0 for row in rows for value in row.values.values())
            assert all("lora_np" in row.values or group.name in ("dylora", "trainings") for row in rows)
            assert group.title in result.stdout
            assert 1000 < (tmp_path / "benchmarks" / f"{group.name}.svg").stat().st_size < 60_000
    page = (tmp_path / "benchmarks.md").read_text()
    assert all(f"benchmarks/{name}.svg" in page for name in timed_ones)
    assert results.machine["numpy"] == np.__version__
    assert "one thread" in page


@pytest.mark.skipif(not processes.can_measure_memory(), reason="needs /proc")
def test_the_suite_measures_memory_and_starts(tmp_path):
    names = "memory,start,resident,disk,encoder-start,encoder-resident,decoder-start,decoder-resident"
    result = run("--quick", "--only", names, "--json", tmp_path / "results.json")
    assert result.returncode == 0, result.stderr
    groups = Results.load(tmp_path / "results.json").groups
    trained, adapted = (groups["memory"][0].values[name].median for name in ("full fine-tuning, lora_np", "lora_np"))
    weights = 2 * 256 * 256 * 4
    assert adapted > weights
    assert trained > 4 * weights  # gradients and two moments besides
    assert groups["resident"][0].values["lora_np"].median > 5e6
    assert groups["disk"][0].values["lora_np"].median > groups["disk"][0].values["NumPy alone"].median > 5e6
    assert groups["start"][0].values["lora_np"].median > 0.01
    assert groups["encoder-start"][0].values["lora_np"].median > 0.01
    assert groups["encoder-resident"][0].values["lora_np"].median > 5e6
    for name in ("lora_np", "lora_np, stored"):
        assert groups["decoder-start"][0].values[name].median > 0.01
        assert groups["decoder-resident"][0].values[name].median > 5e6


def test_an_unknown_group_is_refused():
    result = run("--only", "step,nothing")
    assert result.returncode == 2
    assert "got nothing" in result.stderr


def test_one_thread_is_asked_for_before_numpy_is_there():
    program = "from benchmarks.machine import pin; {}pin(); import os; print(os.environ['OPENBLAS_NUM_THREADS'])"
    early = subprocess.run([sys.executable, "-c", program.format("")], cwd=ROOT, capture_output=True, text=True)
    late = subprocess.run(
        [sys.executable, "-c", program.format("import numpy; ")], cwd=ROOT, capture_output=True, text=True
    )
    assert early.stdout == "1\n"
    assert "before NumPy" in late.stderr


# ---------------------------------------------------------------- agreement before time


def candidate(**arrays):
    return Candidate(lambda: None, lambda: {name: np.asarray(array, np.float32) for name, array in arrays.items()})


@pytest.mark.parametrize(
    "other",
    [
        {"y": [1, 2.001]},
        {"y": [1, np.nan]},
        {"y": [[1, 2]]},
        {"y": [1, 2], "dx": [1]},
        {},
    ],
)
def test_candidates_that_disagree_are_not_timed(other):
    def never():
        raise AssertionError("timed")

    candidates = {"one": candidate(y=[1, 2]), "other": candidate(**other)._replace(run=never)}
    with pytest.raises(DisagreementError, match="other"):
        timed(QUICK, "case", candidates)


def test_an_answer_of_zeros_or_of_another_dtype_is_refused():
    with pytest.raises(DisagreementError, match="zero"):
        check_agreement("case", {"one": candidate(y=[0, 0]), "other": candidate(y=[0, 0])})
    wide = Candidate(lambda: None, lambda: {"y": np.array([1.0, 2.0])})
    with pytest.raises(DisagreementError, match="float64"):
        check_agreement("case", {"one": candidate(y=[1, 2]), "other": wide})


def test_rounding_is_no_disagreement_and_yardsticks_do_not_answer():
    check_agreement("case", {"yardstick": Candidate(print), "one": candidate(y=[1, 2]), "other": candidate(y=[1, 2.0001])})


@pytest.mark.parametrize("wrong", ["y", "dx", "change of A", "change of B"])
def test_a_peer_that_trains_wrongly_is_noticed(monkeypatch, wrong):
    class Wrong(textbook.LoRA):
        def step(self):
            y, dx = super().step()
            return y * (1 + 1e-3 * (wrong == "y")), dx * (1 + 1e-3 * (wrong == "dx"))

        def factors(self):
            A, B = super().factors()
            p = self.problem
            return (
                p.A + (A - p.A) * np.float32(1 + 1e-3 * (wrong == "change of A")),
                p.B + (B - p.B) * np.float32(1 + 1e-3 * (wrong == "change of B")),
            )

    monkeypatch.setattr(textbook, "LoRA", Wrong)
    with pytest.raises(DisagreementError, match=f"{wrong} of {TEXTBOOK}"):
        next(step.GROUPS[0].rows(QUICK))


def test_a_task_that_is_left_out_is_noticed(monkeypatch):
    class Wrong(textbook.MixedLoRA):
        def factors(self):
            A, B = super().factors()
            task = next(iter(self.problem.present))
            return [self.problem.A[task] if number == task else a for number, a in enumerate(A)], B

    monkeypatch.setattr(textbook, "MixedLoRA", Wrong)
    with pytest.raises(DisagreementError, match="change of A"):
        next(multilora.training_rows(QUICK))


@pytest.mark.parametrize("wrong", ["y", "change of A", "change of B"])
def test_an_encoder_that_trains_wrongly_is_noticed(monkeypatch, wrong):
    class Wrong(ours.AdaptedEncoder):
        def __init__(self, problem, memory="lean"):
            super().__init__(problem, memory)
            self.errors = {
                what: 1 + 1e-3 * (memory == "fast" and what == wrong) for what in ("y", "change of A", "change of B")
            }

        def step(self):
            return super().step() * np.float32(self.errors["y"])

        def factors(self):
            kinds = "change of A", "change of B"
            return {
                path: [
                    old + (new - old) * np.float32(self.errors[kind])
                    for kind, old, new in zip(kinds, self.problem.factors[path], pair, strict=True)
                ]
                for path, pair in super().factors().items()
            }

    monkeypatch.setattr(ours, "AdaptedEncoder", Wrong)
    with pytest.raises(DisagreementError, match=f"{wrong} of lora_np fast"):
        next(transformer.training_rows(QUICK))


def test_a_sentence_with_the_adapter_of_another_task_is_noticed(monkeypatch):
    class Wrong(ours.RoutedEncoder):
        def __init__(self, problem, memory="lean"):
            super().__init__(replace(problem, tasks=problem.tasks[::-1]), memory)

    monkeypatch.setattr(ours, "RoutedEncoder", Wrong)
    with pytest.raises(DisagreementError, match="y of lora_np"):
        next(transformer.routed_rows(QUICK))


def test_the_products_of_an_encoder_end_at_the_lowest_adapter():
    problem = SentenceProblem.random(Encoder(None, tiny=True), [3, 2])
    D, inner = (problem.encoder.config[size] for size in ("hidden_size", "intermediate_size"))
    block = [(D, D)] * 4 + [(D, inner), (inner, D)]
    assert [matrix.shape for matrix in transformer.weights(problem)] == 2 * block
    backward = [matrix.shape[::-1] for matrix in transformer.weights(problem, backward=True)]
    assert backward == block[3:] + block  # nothing below the queries of the first block
    assert problem.tokens == 5
    assert (problem.dy.any(axis=-1) == (problem.ids >= 0)).all()


def test_an_encoder_in_a_folder_is_measured():
    made = Encoder(None, tiny=True)
    with checkpoint(made, None) as folder:
        settings = Settings(rounds=2, quick=True, model=folder)
        found = transformer.encoder(settings)
        assert found.config == made.config
        assert all((array == made.weights[name]).all() for name, array in found.weights.items())
        assert [row.values["lora_np"].median > 0 for row in transformer.inference_rows(settings)] == [True, True]


def test_problems_have_no_zeros_and_change_when_trained():
    problem = Problem.random(8, 12, 6, 2)
    assert all((array != 0).all() for array in (problem.W, problem.b, problem.A, problem.B, problem.x, problem.dy))
    contender = textbook.LoRA(problem)
    contender.step()
    for before, after in zip((problem.A, problem.B), contender.factors(), strict=True):
        assert 0.01 < np.linalg.norm(after - before) / np.linalg.norm(before) < 0.3
    assert 0 < problem.slowly().rate < 1e-6 * problem.rate


def test_zipf_gives_most_rows_to_few_tasks():
    uniform, zipf = (MixedProblem.random(256, 4, 4, 64, name) for name in ("uniform", "zipf"))
    assert max(map(len, uniform.present.values())) < 16 < max(map(len, zipf.present.values()))
    assert sum(map(len, zipf.present.values())) == 256


# ---------------------------------------------------------------- time


def test_candidates_take_turns_and_scales_count():
    calls = []
    candidates = {
        name: Candidate(lambda name=name: (calls.append(name), sum(range(2000))), scale=scale)
        for name, scale in (("a", 1.0), ("b", 1e6))
    }
    measures = interleave(candidates, rounds=3, seconds=0.001)
    assert all(len(measure.rounds) == 3 for measure in measures.values())
    assert measures["b"].median > 1000 * measures["a"].median
    blocks = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    # Planning, then a b, b a, a b.
    assert blocks == ["a", "b", "a", "b", "a", "b"]


def test_wall_time_counts_waiting_and_processor_time_does_not():
    waiting = {"wait": Candidate(lambda: time.sleep(0.01))}
    wall, cpu = (interleave(waiting, rounds=1, seconds=0.03, clock=clock)["wait"].median for clock in ("wall", "cpu"))
    assert wall > 0.01 > 2 * cpu


def test_an_epoch_that_trains_wrongly_is_noticed(monkeypatch):
    class Wrong(ours.Fit):
        def factors(self):
            A, B = super().factors()
            return A, [each * np.float32(1.001) for each in B]

    problem = FitProblem.random((6, 5, 3), 2, 8, 4)
    candidates = {"one": training.candidate(ours.Fit, problem), "other": training.candidate(Wrong, problem)}
    with pytest.raises(DisagreementError, match="B of other"):
        check_agreement("fit", candidates)
    check_agreement("fit", candidates | {"other": training.candidate(ours.Fit, problem)})


def test_inputs_with_a_sequence_axis_give_the_results_of_their_rows():
    problem = Problem.random(8, 12, 6, 2)
    flat, deep = textbook.LoRA(problem), textbook.LoRA(problem.with_axes(2, 4))
    (y, dx), (y3, dx3) = flat.step(), deep.step()
    assert y3.shape == (2, 4, 6)
    np.testing.assert_allclose(y3.reshape(y.shape), y, rtol=1e-5)
    np.testing.assert_allclose(dx3.reshape(dx.shape), dx, rtol=1e-5)
    for left, right in zip(flat.factors(), deep.factors(), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)


def test_kernels_of_avx2_can_be_asked_for():
    program = "from benchmarks.machine import describe, pin; pin(as_avx2=True); print(describe())"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "ATEN_CPU_CAPABILITY=avx2" in result.stdout, result.stderr
    assert "core" not in result.stdout or "core Haswell" in result.stdout


def test_two_versions_are_compared_case_by_case():
    name = "predict, batch 1, 64 × 64, rank 4"
    with compare.Version(ROOT) as one, compare.Version(ROOT) as other:
        (line,) = compare.compare(one, other, [name], rounds=3)
        assert line.startswith(name)
        assert 0.2 < float(line[45:].split()[0]) < 5
        (line,) = compare.compare(one, other, ["no such case"], rounds=1)
        assert "KeyError" in line


def test_an_unknown_commit_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no such commit: nobody"):
        compare.unpacked("nobody", tmp_path)


def test_ratios_are_taken_within_rounds():
    mine, its = Measure((1.0, 20.0, 3.0)), Measure((2.0, 40.0, 3.0))
    assert mine.ratio_to(its) == 0.5
    assert mine.spread_to(its) == 0.125
    assert mine.median == 3


# ---------------------------------------------------------------- the report


def group(**changes):
    reasons = {PEFT: "it has good days", "row 1: JAX jit": "a compiler"}
    arguments = {"unit": "s", "axis": "", "reasons": reasons} | changes
    return Group("step", "A step", "About steps.", lambda settings: iter(()), "base", **arguments)


def row(label="row 1", x=None, **values):
    values = {name.replace("_jit", " jit"): value and Measure((value, value)) for name, value in values.items()}
    return Row(label, values, x)


def test_a_table_shows_the_reference_ratios_and_who_is_missing():
    text = tables.text(group(), [row(base=2e-3, lora_np=1e-3, PEFT=None), row("row 2", base=1.5, lora_np=3.0)])
    first, second = text.splitlines()[-2:]
    assert first.split() == ["row", "1", "2.00", "ms", "0.500", "±0.00", "not", "installed"]
    assert second.split() == ["row", "2", "1.50", "s", "2.00", "±0.00"]


def test_quantities_have_three_digits():
    assert [tables.quantity(value, "s") for value in (1.234e-7, 5e-5, 0.0123, 12.3)] == [
        "0.123 µs",
        "50.0 µs",
        "12.3 ms",
        "12.3 s",
    ]
    assert tables.quantity(73.1e6, "B") == "73.1 MB"


def test_every_case_in_which_a_peer_is_ahead_is_told_with_its_reason():
    rows = [
        row(base=1.0, lora_np=2.0, **{"lora_np fast": 1.0}, PEFT=1.6, JAX_jit=1.0),
        row("row 2", base=0.1, lora_np=1.0, PEFT=1.1, JAX_jit=0.5),
    ]
    told = [cells for _, cells in tables.faster_peers(group(), rows)]
    assert told == [
        ["A step", "row 1", PEFT, "1.25", "0.625", "it has good days"],
        ["A step", "row 1", JAX, "2.00", "1.00", "a compiler"],
        ["A step", "row 2", JAX, "2.00", "2.00", ""],
    ]


def test_growth_is_the_slope_between_the_last_two_points():
    rows = [row(x=1, lora_np=5.0, PEFT=1.0), row(x=10, lora_np=1.0, PEFT=2.0), row(x=100, lora_np=100.0, PEFT=None)]
    assert tables.exponents(rows) == pytest.approx({"lora_np": 2, PEFT: np.log10(2)})


def test_results_survive_a_file_and_other_versions_are_refused(tmp_path):
    path = tmp_path / "results.json"
    results = Results({"processor": "ünknown"}, {"step": [row(base=2e-3, PEFT=None, x=4.0)], "memory": []})
    results.save(path)
    assert Results.load(path) == results
    path.write_text(json.dumps({"version": 99}))
    with pytest.raises(ValueError, match="version 1, got 99"):
        Results.load(path)


def test_the_page_is_the_same_for_the_same_results_and_tells_the_bad_news(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.report.page import write_page

    results = Results(
        {"processor": "a fast one"},
        {
            "step": [row(step.label(256, 1024, 8), base=1.0, lora_np=2.0, PEFT=1.0, **{"lora_np max": 0.5})],
            "curve": [row("1", x=1, base=1.0, lora_np=1.0), row("10", x=10, base=1.0, lora_np=10.0)],
        },
    )
    beside = Results(
        {"processor": "an older one", "BLAS of NumPy": "openblas, core Haswell"},
        {"step": [row(step.label(256, 1024, 8), base=1.0, lora_np=4.0, PEFT=8.0)]},
    )
    curve = Group("curve", "A curve", "", lambda settings: iter(()), "base", axis="size")
    for folder in ("one", "two"):
        write_page(results, [group(), curve], tmp_path / folder, beside)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / folder).rglob("*.*")} for folder in ("one", "two"))
    assert one == two
    assert set(one) == {"benchmarks.md", "readme.svg", "step.svg", "curve.svg"}
    page = one["benchmarks.md"].decode()
    assert "| training step, batch 256, 1024 × 1024 | 2.00 | 0.500 |" in page
    assert "| A step | batch 256, 1024 × 1024, rank 8 | PEFT | 2.00 | 0.500 | it has good days |" in page
    assert "| p | 0.00 | 1.00 |" in page
    assert "a fast one" in page
    assert "an older one" in page
    assert "| A step | batch 256, 1024 × 1024, rank 8 | 2.00 | 2.00 | 4.00 | 0.500 |" in page
    assert "Haswell: lora_np / PEFT" in page


def test_a_peer_that_is_not_installed_is_shown_as_such(monkeypatch):
    monkeypatch.setattr(peers, "is_installed", lambda *libraries: False)
    shown = next(step.GROUPS[0].rows(Settings((JAX,), rounds=2, quick=True)))
    assert shown.values[JAX] is None
    assert tables.MISSING in tables.text(step.GROUPS[0], [shown])


def test_requirements_are_followed():
    pytest.importorskip("hypothesis")
    assert cold_start.requirements("numpy") == {"numpy"}
    assert {"hypothesis", "sortedcontainers"} <= cold_start.requirements("Hypothesis", "no-such-package")
    assert cold_start.distribution_bytes("hypothesis") > 100_000


def test_the_page_is_made_from_the_results_beside_it(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from benchmarks.report import charts, page

    for name in ("draw", "draw_key_ratios"):
        monkeypatch.setattr(charts, name, lambda *arguments: None)
    folder = ROOT / "docs" / "benchmarks"
    beside = Results.load(folder / "beside.json") if (folder / "beside.json").exists() else None
    page.write_page(Results.load(folder / "results.json"), GROUPS, tmp_path, beside)
    written = (tmp_path / "benchmarks.md").read_text()
    assert written == (folder.parent / "benchmarks.md").read_text()
    assert written.count("<details>") == written.count("</details>") > 20


def test_the_table_of_merges_is_that_of_the_results():
    page = merge_checkpoint.PAGE.read_text(encoding="utf-8")
    shown = page.partition(merge_checkpoint.START)[2].partition(merge_checkpoint.END)[0]
    assert shown == merge_checkpoint.table(json.loads(merge_checkpoint.RESULTS.read_text(encoding="utf-8")))
