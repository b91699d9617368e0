"""The committed vectors: reproducible to the bit, met by the library, described by the schema, and exported correctly."""

import copy
import json
import math

import jsonschema
import numpy as np
import pytest

from lora_np.conformance import load_vectors, write_vectors
from lora_np.conformance.comparison import TOLERANCE, compare
from lora_np.functions.activations import SHIPPED
from lora_np.io.safetensors import load_safetensors
from tests.conformance import library, make

CASES = load_vectors()
SCHEMA = json.loads(make.FILE.with_name("schema.json").read_text(encoding="utf-8"))
DOCUMENT = json.loads(make.FILE.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def cases(kind):
    return [case for case in CASES if case["kind"] == kind]


def test_generating_them_again_gives_the_same_bytes():
    assert make.text() == make.FILE.read_text(encoding="utf-8"), "python -m tests.conformance.make generates them"


def test_they_are_small():
    assert make.FILE.stat().st_size < 300_000


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_library_agrees(case):
    answer = library.answer(case)
    assert answer.keys() == case["expected"].keys()
    verdict = compare(case, {"arrays": {name: array.tolist() for name, array in answer.items()}})
    assert verdict.result == "pass", verdict


# ---------------------------------------------------------------- coverage


def test_every_activation_and_loss_has_a_case():
    assert {case["settings"]["function"] for case in cases("activation")} == set(SHIPPED)
    assert {case["settings"]["function"] for case in cases("loss")} == set(library.LOSSES)


def test_dylora_has_every_rank_scaling_and_mode():
    keys = ("mode", "scaling")
    found = {(*(case["settings"][key] for key in keys), case["settings"]["schedule"][0]) for case in cases("dylora")}
    assert {(m, s, r) for m in ("full", "frozen") for s in ("max", "paper", "rslora") for r in (1, 2, 4)} <= found


def test_multilora_switches_and_mixes():
    schedules = [case["settings"]["schedule"] for case in cases("multilora")]
    assert any(len({choice for choice in schedule if isinstance(choice, str)}) > 1 for schedule in schedules)
    assert any(isinstance(choice, list) and None in choice for schedule in schedules for choice in schedule)


@pytest.mark.parametrize(
    "holds",
    [
        lambda s: not s["causal"] and len(set(s["lengths"])) == 1,
        lambda s: not s["causal"] and len(set(s["lengths"])) > 1,
        lambda s: s["causal"] and len(s["lengths"]) == 1,
        lambda s: s["causal"] and len(set(s["lengths"])) > 1,
        lambda s: 1 == s["key_value_heads"] < s["heads"],
        lambda s: 1 < s["key_value_heads"] < s["heads"],
        lambda s: s["rotary_base"] is not None,
    ],
    ids=["full", "ragged", "causal", "causal and ragged", "one key-value head", "groups", "rotary"],
)
def test_attention_of_every_form(holds):
    assert any(holds(case["settings"]) for case in cases("attention"))


def test_every_kind_of_function_has_a_case():
    assert {case["kind"] for case in CASES} >= set(library.FUNCTIONS) == set(make.oracle.FUNCTIONS)


@pytest.mark.parametrize(
    ("what", "holds"),
    [
        ("one row", lambda rows, i, o, r: rows == 1),
        ("tall", lambda rows, i, o, r: i > o),
        ("wide", lambda rows, i, o, r: i < o),
        ("rank one", lambda rows, i, o, r: r == 1 < min(i, o)),
        ("full rank", lambda rows, i, o, r: r == min(i, o) > 1),
    ],
)
@pytest.mark.parametrize("kind", ["lora", "dora", "vera"])
def test_awkward_shapes(kind, what, holds):
    if (kind, what) != ("vera", "full rank"):  # the rank of VeRA is not limited by the sizes
        assert any(holds(*np.shape(c["arrays"]["x"]), *np.shape(c["arrays"]["B"])[::-1]) for c in cases(kind))


@pytest.mark.parametrize("alpha", [-1, 0, 0.5, 3])
def test_lora_has_every_kind_of_alpha(alpha):
    assert alpha in {case["settings"]["alpha"] for case in cases("lora")}


def test_given_numbers_have_few_digits():
    for case in CASES:
        for array in case["arrays"].values():
            assert (np.mod(np.array(array, float) * 16, 1) == 0).all()


# ---------------------------------------------------------------- the schema


def test_the_schema_is_valid_and_describes_them():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(DOCUMENT)


def first(document, kind):
    return next(case for case in document["cases"] if case["kind"] == kind)


DAMAGE = {
    "no arrays": lambda d: d["cases"][0].pop("arrays"),
    "no gradient of the input": lambda d: d["cases"][0]["expected"].pop("grad.x"),
    "a cube": lambda d: d["cases"][0]["arrays"].update(x=[[[1.0]]]),
    "another version": lambda d: d.update(version=2),
    "an unknown kind": lambda d: d["cases"][0].update(kind="bora"),
    "an unknown setting": lambda d: d["cases"][0]["settings"].update(seed=1),
    "an unknown activation": lambda d: d["cases"][0]["settings"].update(activation="mish"),
    "a rank of zero": lambda d: first(d, "dylora")["settings"].update(schedule=[0]),
    "no ranks": lambda d: first(d, "dylora")["settings"].pop("active_ranks"),
    "no alphas": lambda d: first(d, "multilora")["settings"].pop("alphas"),
    "no magnitude": lambda d: first(d, "dora")["arrays"].pop("m"),
    "no vector": lambda d: first(d, "vera")["arrays"].pop("d"),
    "no scaling": lambda d: first(d, "lora")["settings"].pop("scaling"),
    "no delta": lambda d: next(c for c in d["cases"] if "delta" in c["settings"])["settings"].pop("delta"),
    "no output": lambda d: first(d, "activation")["expected"].pop("y"),
    "no epsilon": lambda d: first(d, "layer_norm")["settings"].pop("epsilon"),
    "no bias": lambda d: first(d, "layer_norm")["arrays"].pop("b"),
    "no gain": lambda d: first(d, "rms_norm")["arrays"].pop("g"),
    "no positions": lambda d: first(d, "rotary")["arrays"].pop("positions"),
    "a base of one": lambda d: first(d, "rotary")["settings"].update(rotary_base=1),
    "an empty sequence": lambda d: first(d, "attention")["settings"].update(lengths=[0, 6]),
    "no causality": lambda d: first(d, "attention")["settings"].pop("causal"),
    "no gradient of the values": lambda d: first(d, "attention")["expected"].pop("grad.v"),
    "no rotation in a block": lambda d: first(d, "llama_block")["settings"].pop("rotary_base"),
    "an array of a GPT-2 block missing": lambda d: first(d, "gpt2_block")["arrays"].pop("ln_1.bias"),
    "an array of a Llama block missing": lambda d: first(d, "llama_block")["arrays"].pop("mlp.up_proj.weight"),
    "an array of a block missing": lambda d: first(d, "bert_block")["arrays"].pop("output.dense.bias"),
    "a gradient of a block missing": lambda d: first(d, "bert_block")["expected"].pop("grad.output.dense.bias"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_the_schema_rejects(damage):
    document = copy.deepcopy(DOCUMENT)
    damage(document)
    assert not VALIDATOR.is_valid(document)


# ---------------------------------------------------------------- the oracle


def test_the_oracle_rejects_a_kink():
    case = {"name": "kink", "kind": "activation", "settings": {"function": "relu"}, "arrays": {"z": [[0]], "G": [[1]]}}
    with pytest.raises(ValueError, match="an activation is not differentiable at 0: choose other numbers"):
        make.oracle.expected(case)


def test_the_oracle_finds_a_known_derivative():
    arrays = {"z": [[0.5, -2.0]], "G": [[1.0, 1.0]]}
    case = {"name": "known", "kind": "activation", "settings": {"function": "tanh"}, "arrays": arrays}
    found = make.oracle.expected(case)["grad.z"][0]
    assert found == pytest.approx([1 - math.tanh(0.5) ** 2, 1 - math.tanh(2) ** 2], rel=1e-14)


def test_the_oracle_finds_exact_zeros():
    for case in cases("bert_block"):
        assert set(case["expected"]["grad.attention.self.key.bias"]) == {0}
    for case in cases("gpt2_block"):
        size = len(case["arrays"]["x"][0])
        assert set(case["expected"]["grad.attn.c_attn.bias"][size : 2 * size]) == {0}
    causal = next(case for case in cases("attention") if case["name"] == "attention-causal")
    assert causal["expected"]["grad.q"][0] == [0, 0, 0]


# ---------------------------------------------------------------- exported files


def test_the_exported_files_contain_the_same(tmp_path):
    names = write_vectors(tmp_path / "out")
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert json.loads((tmp_path / "out" / "vectors.json").read_bytes()) == DOCUMENT
    assert json.loads((tmp_path / "out" / "schema.json").read_bytes()) == SCHEMA
    tensors = load_safetensors(tmp_path / "out" / "vectors.safetensors")
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float64)}
    wanted = {f"{c['name']}/{part}/{n}": v for c in CASES for part in ("arrays", "expected") for n, v in c[part].items()}
    assert tensors.keys() == wanted.keys()
    for name, values in wanted.items():
        assert tensors[name].tolist() == values


def test_the_reference_implementation_of_safetensors_reads_the_tensors(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    write_vectors(tmp_path)
    tensors = library.load_file(tmp_path / "vectors.safetensors")
    assert tensors["dense-tall/expected/grad.W"].tolist() == CASES[0]["expected"]["grad.W"]
    assert tensors["loss-one-number/expected/value"].shape == ()


def test_numbers_have_the_shortest_exact_representation():
    for line in make.FILE.read_text(encoding="utf-8").splitlines()[1:-1]:
        line = line.removesuffix(",")
        assert json.dumps(json.loads(line), separators=(",", ":")) == line


def test_the_page_states_the_tolerance_and_the_number_of_cases():
    page = (make.FILE.parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert TOLERANCE == 1e-12
    assert "no error is above 10⁻¹²" in page
    assert f"{len(CASES)} small cases" in page
    assert f"{len(CASES)} cases in vectors.json" in page


def test_the_page_names_every_kind_function_and_array():
    page = (make.FILE.parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
    functions = {case["settings"]["function"] for case in cases("activation") + cases("loss")} | set(library.FUNCTIONS)
    settings = {name for case in CASES for name in case["settings"] if name != "function"}
    blocks = cases("bert_block") + cases("gpt2_block") + cases("llama_block")
    layers = {name.rpartition(".")[0] for case in blocks for name in case["arrays"] if "." in name}
    assert {name for name in functions | settings | layers if f"`{name}`" not in page} == set()
