"""Files that claim more than they hold: nothing is allocated that their bytes do not back; classes that files may name."""

import io
import json
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import DenseLayer, FormatError, Layer, Run, _archive, load_layer, save_layer
from lora_np.base.serializable import CONFIG, TYPE
from tests.kinds import KINDS, PLAIN, adapter_builder

HUGE = 20_000  # a weight of this size and height has 3.2 GB


BUILDERS = PLAIN | {kind: adapter_builder(kind, "dense", True) for kind in KINDS}


def described(kind, **config):
    return {TYPE: kind, CONFIG: config}


IDENTITY = described("Activation", name="identity")
DENSE = {"activation": IDENTITY, "regularization": described("Regularization", l1=0.0, l2=0.0), "dtype": "float64"}


def big_dense(size=HUGE):
    return described("DenseLayer", input_size=size, output_size=size, bias=True, **DENSE)


def big_lora(size=HUGE, rank=HUGE):
    return described("LoRALayer", input_size=size, output_size=size, rank=rank, alpha=1.0, dtype="float64", scaling="max")


CLAIMS = {
    "a dense layer": big_dense(),
    "factors": big_lora(),
    "an embedding": described("Embedding", input_size=10**9, output_size=8, dtype="float64"),
    "norms": described("LayerNorm", size=10**9, epsilon=0.1, dtype="float64"),
    "many layers, each as large as the file": described(
        "Sequential", layers={str(i): described("LayerNorm", size=1000, epsilon=0.1, dtype="float64") for i in range(300)}
    ),
    "an adapter": described("StandardLoRAAdapter", base_layer=big_dense(), branch=big_lora(rank=1), freeze_base_layer=True),
    "an adapter of a layer without arrays": described(
        "VeRAAdapter",
        base_layer=described("ActivationLayer", size=10**8, activation=IDENTITY, dtype="float64"),
        rank=8,
        alpha=1.0,
        freeze_base_layer=True,
    ),
}


def file_of(layer, arrays, settings=None):
    stream = io.BytesIO()
    header = {"format": "lora_np", "version": 1, "layer": layer, "settings": settings or {}}
    _archive.write(stream, header, arrays)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS.keys())
def test_layers_larger_than_the_file_are_refused_before_they_are_allocated(claim):
    stream = file_of(claim, {"weight": np.zeros(1000)})
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"an array of shape \(.*\) has more elements than the file"):
            load_layer(stream)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000 + 40 * len(stream.getvalue())
    finally:
        tracemalloc.stop()


def npy(shape, data=b"", dtype="<f8"):
    header = str({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def zipped(entries, method=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    stream.seek(0)
    return stream


HEADER = ("lora_np.json", json.dumps({"format": "lora_np", "version": 1}))


@pytest.mark.parametrize("shape", [(10**10,), (10**5, 10**5), (3,), (1,), (-1,), (-1, -2), (2**70,)])
def test_an_array_must_have_exactly_the_bytes_of_its_shape(shape):
    with pytest.raises(FormatError, match=r"a\.npy.* does not have its|unknown dimension|negative dimensions"):
        _archive.read(zipped([HEADER, ("a.npy", npy(shape, bytes(16)))]))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries_are_refused_before_they_are_inflated(method):
    with pytest.raises(FormatError, match=r"the entry 'lora_np\.json' is compressed"):
        _archive.read(zipped([HEADER, ("a.npy", npy((10**6,), bytes(8 * 10**6)))], method))


def test_entries_that_share_their_bytes_are_refused():
    data = zipped([HEADER, ("a.npy", npy((1000,), bytes(8000)))]).getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.start_dir
    directory, end = data[start:-22], data[-22:]
    last = directory[directory.rindex(b"PK\x01\x02") :]
    copies = [last.replace(b"a.npy", bytes([letter]) + b".npy") for letter in b"bcdefgh"]
    directory += b"".join(copies)
    count = (2 + len(copies)).to_bytes(2, "little")
    end = end[:8] + count + count + len(directory).to_bytes(4, "little") + start.to_bytes(4, "little") + end[20:]
    with pytest.raises(FormatError, match=r"its entries have [\d,]+ bytes, but the file has|[Oo]verlapped"):
        _archive.read(io.BytesIO(data[:start] + directory + end))


@pytest.mark.parametrize("field", [20, 24], ids=["stored size", "size"])
def test_an_entry_that_claims_more_bytes_than_the_file_has_is_refused_before_they_are_allocated(field):
    data = bytearray(zipped([HEADER, ("a.npy", npy((1000,), bytes(8000)))]).getvalue())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + field : entry + field + 4] = (2**31 - 2).to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"its entries have 2,147,\d+,\d+ bytes, but the file has"):
            _archive.read(io.BytesIO(bytes(data)))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_two_entries_of_one_name_are_refused():
    with pytest.warns(UserWarning, match="Duplicate name"):
        stream = zipped([HEADER, ("a.npy", npy((1,), bytes(8))), ("a.npy", npy((2,), bytes(16)))])
    with pytest.raises(FormatError, match="two entries have the same name"):
        _archive.read(stream)


def test_two_equal_names_in_the_header_are_refused():
    header = '{"format": "lora_np", "version": 1, "layer": {"a": 1, "a": 2}}'
    with pytest.raises(FormatError, match=r"a name occurs twice in the header, among \['a', 'a'\]"):
        _archive.read(zipped([("lora_np.json", header)]))


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_the_limit_admits_every_layer(build, dtype):
    layer, stream = build(dtype), io.BytesIO()
    save_layer(layer, stream)
    stream.seek(0)
    load_layer(stream)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_hostile_files_are_refused_within_100_megabytes(tmp_path):
    for number, claim in enumerate(CLAIMS.values()):
        (tmp_path / f"layer{number}.npz").write_bytes(file_of(claim, {"weight": np.zeros(1000)}).getvalue())
    for name, shape in {"array": (10**10,), "wide": (10**5, 10**5)}.items():
        (tmp_path / f"{name}.npz").write_bytes(zipped([HEADER, ("a.npy", npy(shape, bytes(16)))]).getvalue())
    bomb = zipped([HEADER, ("a.npy", npy((2 * 10**7,), bytes(16 * 10**7)))], zipfile.ZIP_DEFLATED)
    (tmp_path / "bomb.npz").write_bytes(bomb.getvalue())
    program = """
        import pathlib, resource, sys
        import lora_np.sklearn  # everything is imported before the limit
        from lora_np import FormatError, load_layer
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
        for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
            try:
                load_layer(path)
            except FormatError as error:
                assert not isinstance(error.__cause__, MemoryError), path
                print(path.name)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == sorted(path.name for path in tmp_path.iterdir())


# ---------------------------------------------------------------- the classes that a file may name


def user_class(name, module="users", factor=1.0, qualname=None):
    """A layer class of a user, as a module of theirs would define it."""

    def apply(self, x, run):
        return factor * x, None

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        return factor * dy, {}

    def flops(self):
        return 0

    def config(self):
        return {"input_size": self.input_size, "output_size": self.output_size, "dtype": self.dtype}

    body = {"apply": apply, "vjp": vjp, "estimate_flops": flops, "config": config}
    return type(name, (Layer,), {**body, "__module__": module, "__qualname__": qualname or name})


def saved(kind):
    stream = io.BytesIO()
    save_layer(kind(2, 2), stream)
    return stream.getvalue()


def with_name(data, name):
    header, arrays = _archive.read(io.BytesIO(data))
    header["layer"][TYPE] = name
    stream = io.BytesIO()
    _archive.write(stream, header, arrays)
    return stream.getvalue()


def load(data):
    return load_layer(io.BytesIO(data))


@pytest.fixture
def forget():
    """Classes that a test defines would be found by the tests after it: they are removed."""
    kinds = []

    def define(*arguments, **keywords):
        kinds.append(user_class(*arguments, **keywords))
        return kinds[-1]

    yield define
    for kind in kinds:
        kind.__qualname__ = kind.__name__ = f"Gone{id(kind)}"
        kind.__module__ = "gone"


@pytest.mark.parametrize("name", ["DenseLayer", "Activation", "StandardLoRAAdapter"])
def test_a_user_class_never_takes_the_place_of_ours(name, forget):
    ours = saved_dense = io.BytesIO()
    save_layer(DenseLayer(2, 2, rng=0), saved_dense)
    theirs = forget(name)
    assert type(load(ours.getvalue())) is DenseLayer
    assert type(load(saved(theirs))) is theirs


def test_user_classes_of_equal_names_are_told_apart_by_their_modules(forget):
    one, other = forget("Rescale", "users.one", 2.0), forget("Rescale", "users.other", 3.0)
    assert type(load(saved(one))) is one
    assert type(load(saved(other))) is other


def test_a_name_that_fits_two_classes_is_refused(forget):
    one = forget("Rescale", "users.one")
    data = with_name(saved(one), "Rescale")
    assert type(load(data)) is one  # a file from before modules were written
    forget("Rescale", "users.other")
    with pytest.raises(FormatError, match=r"2 classes are named 'Rescale': users\.one\.Rescale, users\.other\.Rescale"):
        load(data)


def test_a_class_that_has_moved_is_found_by_its_name(forget):
    kind = forget("Rescale", "serving.layers")
    assert type(load(with_name(saved(kind), "__main__.Rescale"))) is kind
    assert type(load(with_name(saved(kind), "notebook.Outer.Rescale"))) is kind


def test_a_class_that_was_defined_again_is_the_new_one(forget, monkeypatch):
    old, new = forget("Again", "tests.io.test_hostile_npz"), forget("Again", "tests.io.test_hostile_npz")
    data = saved(old)
    with pytest.raises(FormatError, match="2 classes are named"):
        load(data)
    monkeypatch.setitem(globals(), "Again", new)
    assert type(load(data)) is new


@pytest.mark.parametrize(
    "name", ["os.system", "lora_np.layers.dense.DenseLayer", "antigravity.Layer", "", ".", None, 3, []]
)
def test_nothing_is_imported_or_called_because_a_file_names_it(name, forget):
    data = with_name(saved(forget("Rescale")), name)
    with pytest.raises(FormatError, match=r"unknown class|damaged"):
        load(data)
    assert "antigravity" not in sys.modules


@given(value=st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_description_is_refused_or_loaded(value):
    stream = file_of(described("DenseLayer", input_size=value, output_size=1, bias=True, **DENSE), {"weight": np.zeros(4)})
    with pytest.raises(FormatError):
        load_layer(stream)


def test_the_loaded_user_layer_computes_what_was_saved(forget):
    layer = load(saved(forget("Twice", factor=2.0)))
    np.testing.assert_array_equal(layer.apply(np.ones(2), Run())[0], [2.0, 2.0])
