"""Layers in npz files: exact round trips of every class, and FormatError, and no other error, for damaged files."""

import copy
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import (
    Activation,
    ActivationLayer,
    ArgumentError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    Embedding,
    FormatError,
    FullyConnectedLayer,
    Layer,
    LayerNorm,
    LlamaModel,
    LoRALayer,
    MultiLoRAAdapter,
    NotSupportedError,
    Regularization,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    VeRALayer,
    _archive,
    gelu_exact,
    geometric,
    load_layer,
    relu,
    save_layer,
    softmax,
    tanh,
)
from lora_np.base.serializable import CONFIG, TYPE
from tests.models.decoders import LLAMA

ODD_NAMES = ["größe ☃ 数", "a.b", "a/b", "../up", "two words", "file", "type", "matrix_a", "lora_np.json", ".", "n" * 2000]


class Scale(Layer):
    """A user-defined layer: an array, a zero-dimensional array, and a setting."""

    parameter_names = ("factor", "shift")
    frozen = frozenset({"shift"})
    settings = ("power",)

    def __init__(self, size, dtype=np.float64):
        super().__init__(size, size, dtype)
        self.factor = np.ones(size, self.dtype)
        self.shift = np.zeros((), self.dtype)
        self.power = 1

    def apply(self, x, run):
        return self.factor**self.power * x + self.shift, (x,)

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        raise NotImplementedError

    def estimate_flops(self):
        return 3 * self.input_size


class SavedScale(Scale):
    def config(self):
        return {"size": self.input_size, "dtype": self.dtype}


def dylora(**keywords):
    adapter = DyLoRAAdapter(DenseLayer(6, 5), 4, [1, 2, 4], **keywords)
    adapter.set_deployment_rank(2)
    return adapter


def multilora(names=("a", "b", "c"), **keywords):
    first, *others = names
    adapter = MultiLoRAAdapter(FullyConnectedLayer(6, 5, **keywords), first, 2, 3.0)
    for i, name in enumerate(others):
        adapter.add_task(name, 1 + i % 5, 0.5 * i)
    adapter.current_task = names[-1]
    return adapter


def nested():
    inner = Sequential({"first": DenseLayer(5, 4, relu), "second": FullyConnectedLayer(4, 3)}, frozen=["second"])
    return Sequential([multilora(), inner, ActivationLayer(3, softmax)], frozen=["1"])


def scale():
    layer = SavedScale(3)
    layer.power = 2
    return layer


KINDS = {
    "dense": lambda: DenseLayer(3, 2),
    "dense with everything": lambda: DenseLayer(3, 2, gelu_exact, regularization=Regularization(l1=0.25, l2=0.1)),
    "fully connected": lambda: FullyConnectedLayer(3, 2, tanh),
    "activation": lambda: ActivationLayer(3, softmax),
    "lora": lambda: LoRALayer(5, 4, 3, 2.0, scaling="rslora"),
    "lora with alpha 0": lambda: LoRALayer(5, 4, 3, 0.0),
    "vera layer": lambda: VeRALayer(5, 4, 7, 3.0),
    "nested": nested,
    "standard": lambda: StandardLoRAAdapter(DenseLayer(6, 5, relu), 3, 2.5, scaling="rslora"),
    "standard on a trained base": lambda: StandardLoRAAdapter(DenseLayer(6, 5), 3, freeze_base_layer=False),
    "standard on a stack": lambda: StandardLoRAAdapter(Sequential([DenseLayer(6, 5, relu), DenseLayer(5, 4)]), 2),
    "dylora": dylora,
    "dylora with everything": lambda: dylora(
        alpha=3.0, mode="frozen", scaling="paper", rank_distribution=geometric([1, 2, 4]), freeze_base_layer=False
    ),
    "multilora": multilora,
    "multilora with odd names": lambda: multilora(ODD_NAMES),
    "dora": lambda: DoRAAdapter(DenseLayer(6, 5), 3, 2.0, norm_gradient=False, scaling="rslora"),
    "vera": lambda: VeRAAdapter(FullyConnectedLayer(6, 5), 9, 2.0, initial_d=0.5),
    "adapter on an adapter": lambda: StandardLoRAAdapter(multilora(), 2),
    "float32": lambda: multilora(dtype=np.float32),
    "own": scale,
}

each = pytest.mark.parametrize("build", KINDS.values(), ids=KINDS.keys())


def filled(build, seed=0):
    """A layer with random arrays, so that no zero hides a lost value."""
    layer, random = build(), np.random.default_rng(seed)
    for array in layer.named_parameters(frozen=True).values():
        array[...] = random.standard_normal(array.shape)
    return layer


def saved(layer):
    stream = io.BytesIO()
    save_layer(layer, stream)
    stream.seek(0)
    return stream


def changed(layer, change):
    """The file of a layer after a change to its header or arrays."""
    header, arrays = _archive.read(saved(layer))
    change(header, arrays)
    stream = io.BytesIO()
    _archive.write(stream, header, arrays)
    stream.seek(0)
    return stream


def state(layer):
    """Everything that must not change when a file is rejected."""
    arrays = layer.named_parameters(frozen=True)
    settings = {(path, name): getattr(inner, name) for path, inner in layer.walk().items() for name in inner.settings}
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}, settings


def assert_rejected(layer, file, match):
    """Assert that deserializing the file raises FormatError and leaves the layer unchanged, bitwise."""
    before = state(layer)
    with pytest.raises(FormatError, match=match):
        layer.deserialize(file)
    assert state(layer) == before


# ---------------------------------------------------------------- round trips


@each
def test_a_loaded_layer_has_equal_arrays_settings_and_outputs(build):
    layer = filled(build)
    twin = load_layer(saved(layer))
    assert type(twin) is type(layer)
    assert state(twin) == state(layer)
    assert [type(inner) for inner in twin.walk().values()] == [type(inner) for inner in layer.walk().values()]
    x = np.random.default_rng(1).standard_normal((4, layer.input_size))
    np.testing.assert_array_equal(twin.predict(x), layer.predict(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda: MultiLoRAAdapter(DenseLayer(3, 2, rng=0), "a", 1, rng=0),
        lambda: Sequential([Embedding(5, 4, rng=0), LayerNorm(4)]),
        lambda: LlamaModel.new(LLAMA, rng=0),
    ],
)
def test_a_new_process_loads_a_layer_whose_module_it_has_not_imported(build, tmp_path):
    layer, path = build(), tmp_path / "layer.npz"
    layer.serialize(path)
    code = "import sys\nfrom lora_np import load_layer\nprint(type(load_layer(sys.argv[1])).__name__)"
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.stderr) == (type(layer).__name__, "")


@each
def test_a_loaded_layer_trains_the_same_parameters(build):
    layer = filled(build)
    twin = load_layer(saved(layer))
    assert twin.named_parameters().keys() == layer.named_parameters().keys()
    np.testing.assert_array_equal(twin.get_parameters(), layer.get_parameters())
    assert twin._details() == layer._details()


@each
def test_saving_a_loaded_layer_produces_identical_bytes(build):
    file = saved(filled(build))
    assert saved(load_layer(file)).getvalue() == file.getvalue()


@given(weights=st.lists(st.floats(1e-3, 1), min_size=3, max_size=3))
def test_any_rank_distribution_round_trips(weights):
    adapter = DyLoRAAdapter(DenseLayer(6, 5, rng=0), 4, [1, 2, 4], rank_distribution=weights, rng=0)
    twin = load_layer(saved(adapter))
    assert twin.rank_distribution == adapter.rank_distribution


@each
def test_deserialize_fills_a_layer_of_the_same_structure_in_place(build):
    layer, other = filled(build, 1), filled(build, 2)
    arrays = other.named_parameters(frozen=True)
    other.deserialize(saved(layer))
    assert state(other) == state(layer)
    assert all(array is arrays[name] for name, array in other.named_parameters(frozen=True).items())


def test_deserialize_restores_settings():
    layer = dylora()
    layer.set_deployment_rank(4)
    layer.deserialize(saved(dylora()))
    assert layer.current_deployment_rank == 2


def test_deserialize_discards_the_pending_pass():
    layer = DenseLayer(3, 2, rng=0)
    layer.backward(layer.forward(np.ones(3)))
    layer.deserialize(saved(DenseLayer(3, 2, rng=1)))
    assert not layer.gradients


@each
def test_a_loaded_layer_is_in_training_mode(build):
    assert all(inner.is_training for inner in load_layer(saved(build().eval())).walk().values())


@each
def test_a_path_and_a_stream_get_the_same_bytes(build, tmp_path):
    path = tmp_path / "layer.npz"
    layer = filled(build)
    save_layer(layer, path)
    assert path.read_bytes() == saved(layer).getvalue()
    assert state(load_layer(path)) == state(layer)


def test_only_a_layer_can_be_saved(tmp_path):
    with pytest.raises(ArgumentError, match="layer must be a layer"):
        save_layer([DenseLayer(2, 2)], tmp_path / "layer.npz")
    assert not list(tmp_path.iterdir())


def test_serialize_and_save_layer_are_the_same():
    stream, layer = io.BytesIO(), filled(nested)
    layer.serialize(stream)
    assert stream.getvalue() == saved(layer).getvalue()


@each
def test_numpy_reads_the_arrays_by_name(build):
    layer = filled(build)
    with np.load(saved(layer)) as file:
        for name, array in layer.named_parameters(frozen=True).items():
            np.testing.assert_array_equal(file[name], array)


def test_tasks_round_trip_in_order_with_their_ranks_and_alphas():
    layer = multilora(ODD_NAMES)
    twin = load_layer(saved(layer))
    assert twin.current_task == ODD_NAMES[-1]
    assert [(name, task.rank, task.alpha) for name, task in twin.task_adapters.items()] == [
        (name, task.rank, task.alpha) for name, task in layer.task_adapters.items()
    ]


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "n" * 70_000], ids=["zero byte", "lone surrogate", "very long"])
def test_a_task_name_that_cannot_be_stored_is_rejected_before_writing(name, tmp_path):
    with pytest.raises((ArgumentError, NotSupportedError)):
        save_layer(MultiLoRAAdapter(DenseLayer(3, 2), name, 1), tmp_path / "layer.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [("type", "config"), ("config", "type"), ("settings", "layer")], ids=str)
def test_layers_can_be_named_like_the_keys_of_a_file(names):
    layer = filled(lambda: Sequential({name: DenseLayer(3, 3) for name in names}))
    twin = load_layer(saved(layer))
    assert state(twin) == state(layer)
    assert list(twin.children()) == list(names)


# ---------------------------------------------------------------- layers that cannot be saved


@pytest.mark.parametrize(
    "layer",
    [Scale(3), Sequential([DenseLayer(2, 3), Scale(3)]), DenseLayer(3, 2, Activation("cube", np.abs, np.multiply))],
    ids=["no config", "no config inside", "own activation"],
)
@pytest.mark.parametrize("old", [None, b"older"], ids=["no file", "older file"])
def test_a_layer_that_cannot_be_rebuilt_is_not_saved(layer, old, tmp_path):
    path = tmp_path / "layer.npz"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(NotSupportedError, match=r"Scale cannot be saved|cube"):
        save_layer(layer, path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_layer_without_config_can_still_be_copied():
    assert copy.deepcopy(Scale(3)).power == 1


# ---------------------------------------------------------------- different structures

DENSE = DenseLayer(3, 2, relu)
OTHERS = {
    "type": (LoRALayer(3, 2, 1), DENSE, "type is 'LoRALayer' in the file and 'DenseLayer' here"),
    "size": (DenseLayer(4, 2, relu), DENSE, "config.input_size is 4 in the file and 3 here"),
    "activation": (DenseLayer(3, 2), DENSE, "config.activation.config.name is 'identity' in the file and 'relu' here"),
    "dtype": (DenseLayer(3, 2, relu, dtype="f4"), DENSE, "config.dtype is 'float32' in the file and 'float64' here"),
    "rank": (LoRALayer(3, 3, 1), LoRALayer(3, 3, 2), "config.rank is 1 in the file and 2 here"),
    "inner": (Sequential([DENSE]), Sequential([DenseLayer(3, 2)]), "layers.0.config.activation.config.name is 'relu'"),
    "fewer": (Sequential([DENSE]), Sequential({"a": DenseLayer(3, 2)}), "layers.a is None in the file"),
    "frozen": (
        Sequential([DENSE], frozen=["0"]),
        Sequential([DenseLayer(3, 2, relu)]),
        r"frozen is \['0'\] in the file and \[\] here",
    ),
    "tasks": (multilora(["a", "b"]), multilora(["a", "c"]), r"tasks.*'b'.* in the file and .*'c'.* here"),
    "order of tasks": (multilora(["a", "b"]), multilora(["b", "a"]), "tasks is"),
    "more": (
        Sequential({"a": DenseLayer(3, 3), "b": DenseLayer(3, 3)}),
        Sequential({"a": DenseLayer(3, 3)}),
        "layers.b is .* in the file and None here",
    ),
    "order of layers": (
        Sequential({"a": DenseLayer(3, 3), "b": DenseLayer(3, 3)}),
        Sequential({"b": DenseLayer(3, 3), "a": DenseLayer(3, 3)}),
        "layers",
    ),
}


@pytest.mark.parametrize(("theirs", "ours", "difference"), OTHERS.values(), ids=OTHERS.keys())
def test_a_file_with_a_different_structure_is_rejected_with_the_first_difference(theirs, ours, difference):
    assert_rejected(ours, saved(theirs), f"the file does not match {ours.layer_name}: (config.)?{difference}")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda header, arrays: header.update(layer=5), r"layer is 5 in the file and \{"),
        (lambda header, arrays: header.update(layer=dict(reversed(header["layer"].items()))), "layer is ordered "),
        (lambda header, arrays: header["layer"].update({TYPE: "LoRALayer"}), "type is 'LoRALayer'"),
    ],
    ids=["not a layer", "order", "type"],
)
def test_the_first_level_of_a_structure_is_named_too(change, difference):
    layer = DenseLayer(3, 2, relu)
    assert_rejected(layer, changed(DENSE, change), f"the file does not match {layer.layer_name}: {difference}")


# ---------------------------------------------------------------- damaged files


def remove(name):
    return lambda header, arrays: arrays.pop(name)


def put(name, value):
    return lambda header, arrays: arrays.update({name: value})


DAMAGED_ARRAYS = {
    "missing": (remove("base.bias"), "base.bias: no weight given"),
    "extra": (put("base.other", np.ones(2)), "base.other: no such parameter"),
    "other shape": (put("base.bias", np.ones(6)), r"base.bias: expected shape \(5,\), got \(6,\)"),
    "other axes": (put("base.bias", np.ones((1, 5))), r"base.bias: expected shape \(5,\), got \(1, 5\)"),
    "complex": (put("base.bias", np.ones(5, complex)), "base.bias.* real numbers"),
    "text": (put("base.bias", np.array(["a"] * 5)), "base.bias.* real numbers"),
}

DAMAGED_SETTINGS = {
    "none": None,
    "missing": {},
    "other path": {"0": {"current_task": "a"}},
    "other name": {"": {"task": "a"}},
    "one more": {"": {"current_task": "a"}, "base": {}},
    "unknown task": {"": {"current_task": "z"}},
    "a number": {"": {"current_task": 3}},
    "a list as a name": {"": {"current_task": ["a"]}},
    "an object as a name": {"": {"current_task": {}}},
    "a list": [],
    "a list inside": {"": ["current_task"]},
    "a list of lists inside": {"": [[1]]},
    "a number inside": {"": 5},
    "nothing inside": {"": None},
    "text inside": {"": "current_task"},
}


@pytest.mark.parametrize(("change", "message"), DAMAGED_ARRAYS.values(), ids=DAMAGED_ARRAYS.keys())
def test_arrays_that_do_not_fit_are_rejected(change, message):
    file = changed(multilora(), change)
    assert_rejected(filled(multilora), file, message)
    with pytest.raises(FormatError, match=message):
        load_layer(file)


@pytest.mark.parametrize("settings", DAMAGED_SETTINGS.values(), ids=DAMAGED_SETTINGS.keys())
def test_settings_that_do_not_fit_are_rejected(settings):
    file = changed(multilora(), lambda header, arrays: header.update(settings=settings))
    assert_rejected(filled(multilora), file, "settings do not match")
    with pytest.raises(FormatError, match="settings do not match"):
        load_layer(file)


@pytest.mark.parametrize("rank", [3, 0, None, 2.0, "2", True, [2]], ids=repr)
def test_a_deployment_rank_that_is_not_active_is_rejected(rank):
    file = changed(dylora(), lambda header, arrays: header["settings"][""].update(current_deployment_rank=rank))
    assert_rejected(filled(dylora), file, "settings do not match")


def test_settings_are_rolled_back_if_arrays_do_not_fit():
    file = changed(dylora(), remove("lora.matrix_a"))
    layer = dylora()
    layer.set_deployment_rank(4)
    assert_rejected(layer, file, "lora.matrix_a: no weight given")


def test_settings_are_rolled_back_if_a_later_one_does_not_fit():
    def two():
        return Sequential([dylora(), DyLoRAAdapter(DenseLayer(5, 5), 4, [1, 2, 4])])

    file = changed(two(), lambda header, arrays: header["settings"]["1"].update(current_deployment_rank=3))
    layer = two()
    layer[0].set_deployment_rank(4)
    assert_rejected(layer, file, "rank must be one of the active ranks")


@pytest.mark.parametrize("kind", ["Unheard", "Layer", "list", "", None, 3, ["DenseLayer"]], ids=repr)
def test_an_unknown_class_is_rejected(kind):
    file = changed(DENSE, lambda header, arrays: header["layer"].update({TYPE: kind}))
    with pytest.raises(FormatError, match=r"unknown class|damaged"):
        load_layer(file)


def test_the_message_about_an_unknown_class_says_what_to_do():
    file = changed(DENSE, lambda header, arrays: header["layer"].update({TYPE: "Unheard"}))
    with pytest.raises(FormatError, match="unknown class 'Unheard'; import the module that defines it first"):
        load_layer(file)


def described(kind, config):
    return {TYPE: kind, CONFIG: config}


@pytest.mark.parametrize(
    "layer",
    [
        None,
        5,
        [],
        {},
        {TYPE: "DenseLayer"},
        {"type": "DenseLayer", "config": {"input_size": 3, "output_size": 2}},
        described("AffineLayer", {"input_size": 3, "output_size": 2}),
        described("Activation", {"name": "relu"}),
        described("Regularization", {}),
        described("DenseLayer", [3, 2]),
        described("DenseLayer", {"input_size": 3}),
        described("DenseLayer", {"input_size": 3, "output_size": 2, "other": 1}),
        described("DenseLayer", {"input_size": 3, "output_size": 0}),
        described("DenseLayer", {"input_size": 10**12, "output_size": 10**12}),
        described("DenseLayer", {"input_size": 3, "output_size": 2, "activation": "relu"}),
        described("Sequential", {"layers": []}),
        described("Sequential", {"layers": {"a": 3}}),
        described("MultiLoRAAdapter", {"base_layer": None, "tasks": []}),
        described("StandardLoRAAdapter", {"base_layer": 3, "lora_layer": 3, "freeze_base_layer": True}),
        described("DyLoRAAdapter", {}),
        described("LoRALayer", {"input_size": 10**400, "output_size": 2, "rank": 1}),
    ],
    ids=lambda value: json.dumps(value)[:70],
)
def test_a_damaged_description_is_rejected(layer):
    file = changed(DENSE, lambda header, arrays: header.update(layer=layer))
    with pytest.raises(FormatError):
        load_layer(file)


def places(value, path=()):
    """The paths of all values inside a JSON value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    result = copy.copy(value)
    result[path[0]] = replaced(value[path[0]], path[1:], new)
    return result


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**62, 10**400, "", "z", "0", "relu", "float32", "DenseLayer", "Sequential", TYPE, CONFIG])
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["", "0", "a", TYPE, CONFIG, "current_task"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@each
@given(data=st.data())
def test_a_damaged_header_raises_a_format_error_or_loads_a_layer(build, data):
    header, arrays = _archive.read(saved(build()))
    path = data.draw(st.sampled_from(sorted(places(header), key=repr)))
    stream = io.BytesIO()
    _archive.write(stream, replaced(header, path, data.draw(json_values)), arrays)
    stream.seek(0)
    try:
        layer = load_layer(stream)
    except FormatError:
        return
    assert isinstance(layer, Layer)


def test_a_file_that_is_not_an_archive_is_rejected(tmp_path):
    path = tmp_path / "layer.npz"
    path.write_bytes(b"text")
    assert_rejected(filled(multilora), path, "is not a lora_np file")


def test_arrays_are_cast_to_the_dtype_of_the_layer():
    file = changed(DENSE, put("bias", np.array([1, 2])))
    layer = load_layer(file)
    assert layer.bias.dtype == np.float64
    np.testing.assert_array_equal(layer.bias, [1, 2])


# ---------------------------------------------------------------- damaged bytes


def file_of(array):
    """The bytes of a file with one layer, whose weight is the array."""
    layer = DenseLayer(*array.shape, rng=0)
    layer.set_parameter("weight", array)
    file = io.BytesIO()
    save_layer(layer, file)
    return layer, bytearray(file.getvalue())


def test_a_changed_element_is_noticed():
    layer, content = file_of(np.full((3, 2), 1.5))
    place = content.index(layer.weight.tobytes())
    content[place] ^= 1
    with pytest.raises(FormatError, match=r"'weight\.npy' are damaged: wrong CRC-32"):
        load_layer(io.BytesIO(content))


@pytest.mark.parametrize("change", ["signature", "name"])
def test_an_entry_that_is_not_where_the_directory_says_is_noticed(change):
    _, content = file_of(np.full((3, 2), 1.5))
    place = content.index(b"weight.npy")  # in the entry itself; the directory follows all entries
    content[place - 30 if change == "signature" else place] ^= 1
    with pytest.raises(FormatError, match=r"'weight\.npy' is not where the directory says"):
        load_layer(io.BytesIO(content))


def test_arrays_that_another_program_stored_in_fortran_order(tmp_path):
    layer = DenseLayer(3, 2, rng=0)
    save_layer(layer, tmp_path / "layer.npz")
    with zipfile.ZipFile(tmp_path / "layer.npz") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asfortranarray(layer.weight))
    contents["weight.npy"] = file.getvalue()
    with zipfile.ZipFile(tmp_path / "layer.npz", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    np.testing.assert_array_equal(load_layer(tmp_path / "layer.npz").weight, layer.weight)
