"""The archive: exact round trips, atomic writing, and FormatError for everything that is damaged."""

import io
import json
import os
import re
import zipfile

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import ArgumentError, FormatError, _archive

HEADER = {"format": "lora_np", "version": 1, "layer": {"name": "größe"}}
ARRAYS = {"a": np.arange(3.0), "b.c": np.array([[1.5], [-2.0]], np.float32)}

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0, max_side=3)
)


def content(header=HEADER, values=ARRAYS):
    """The bytes of an archive."""
    stream = io.BytesIO()
    _archive.write(stream, header, values)
    return stream.getvalue()


def read(data):
    return _archive.read(io.BytesIO(data))


def npy(array, **keywords):
    stream = io.BytesIO()
    np.save(stream, array, **keywords)
    return stream.getvalue()


def zipped(entries, method=zipfile.ZIP_STORED):
    """The bytes of a zip file with the given entries and valid checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def with_array(payload):
    return zipped({"lora_np.json": json.dumps(HEADER), "a.npy": payload})


def npy_with_header(text):
    header = text.encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(24)


def assert_equal_arrays(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def assert_same_or_rejected(data):
    """Assert that a file either raises FormatError, and no other error, or has the contents that were written.

    A damaged directory may hide entries; `load_layer` detects that arrays are missing.
    """
    try:
        header, found = read(data)
    except FormatError:
        return
    assert header == HEADER
    assert_equal_arrays(found, {name: ARRAYS[name] for name in found})


# ---------------------------------------------------------------- round trips


@given(extra=st.dictionaries(st.text().filter(lambda k: k not in HEADER), json_values, max_size=3))
def test_headers_round_trip(extra):
    assert read(content(HEADER | extra))[0] == HEADER | extra


@given(values=st.dictionaries(names.filter(lambda n: not n.endswith(".npy")), arrays, max_size=4))
def test_arrays_round_trip_exactly_and_in_order(values):
    assert_equal_arrays(read(content(values=values))[1], values)


@pytest.mark.parametrize(
    "name",
    ["x", "a.npy", "file", "lora_np.json", "a/b", "../a", "a\\b", " ", "", "ü", "n" * 60_000],
    ids=lambda name: name[:20],
)
def test_odd_names_round_trip(name):
    assert_equal_arrays(read(content(values={name: np.ones(2)}))[1], {name: np.ones(2)})


@pytest.mark.parametrize(
    "name", ["a\0b", "\ud800", "n" * 70_000, "ü" * 33_000], ids=["zero", "half", "long", "long in UTF-8"]
)
@pytest.mark.parametrize("old", [None, b"older"], ids=["no file", "older file"])
def test_a_name_that_cannot_be_stored_is_rejected_before_anything_is_written(tmp_path, name, old):
    path = tmp_path / "layer.npz"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(ArgumentError, match="array name cannot be stored in a file: '"):
        _archive.write(path, HEADER, {"a": np.ones(2), name: np.ones(2)})
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if old is None else [old])


def test_special_numbers_round_trip():
    values = {"a": np.array([np.nan, -0.0, np.inf, 5e-324])}
    assert_equal_arrays(read(content(values=values))[1], values)


@pytest.mark.parametrize("view", [np.arange(6.0).reshape(2, 3).T, np.arange(6.0)[::2], np.arange(6.0)[::-1]], ids=str)
def test_views_are_written_as_their_values(view):
    np.testing.assert_array_equal(read(content(values={"a": view}))[1]["a"], view)


def test_equal_contents_produce_identical_bytes():
    copies = {name: np.asfortranarray(array.copy()) for name, array in ARRAYS.items()}
    assert content() == content(dict(HEADER), copies)


def test_different_contents_produce_different_bytes():
    assert content() != content(values={"a": np.arange(3.0), "b.c": np.zeros((2, 1), np.float32)})


def test_numpy_reads_the_arrays():
    with np.load(io.BytesIO(content())) as archive:
        assert_equal_arrays({name: archive[name] for name in ARRAYS}, ARRAYS)


@pytest.mark.parametrize("convert", [str, lambda path: path], ids=["str", "Path"])
def test_a_path_and_a_stream_get_the_same_bytes(tmp_path, convert):
    path = convert(tmp_path / "layer.npz")
    _archive.write(path, HEADER, ARRAYS)
    with open(path, "rb") as file:
        assert file.read() == content()
    header, found = _archive.read(path)
    assert header == HEADER
    assert_equal_arrays(found, ARRAYS)


def test_a_path_without_a_folder_is_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _archive.write("layer.npz", HEADER, ARRAYS)
    assert os.listdir(tmp_path) == ["layer.npz"]


# ---------------------------------------------------------------- atomic writing


class Unreadable:
    """Fails on conversion to an array, in the middle of a file."""

    def __array__(self, dtype=None, copy=None):
        raise OSError("the disk is gone")


FAILURES = {
    "an array that fails": (HEADER, {"a": np.ones(3), "b": Unreadable()}, OSError),
    "an array of objects": (HEADER, {"a": np.ones(3), "b": np.array([object()])}, ValueError),
    "a header that is not JSON": (HEADER | {"x": object()}, ARRAYS, TypeError),
    "a header with NaN": (HEADER | {"x": float("nan")}, ARRAYS, ValueError),
}


@pytest.mark.parametrize(("header", "values", "error"), FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("old", [None, b"an older file"], ids=["no file", "older file"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, header, values, error, old):
    path = tmp_path / "layer.npz"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error):
        _archive.write(path, header, values)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if old is None else [old])


def test_the_old_file_remains_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with _archive.atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_two_writers_of_one_file_do_not_interfere(tmp_path):
    path = tmp_path / "file"
    with _archive.atomic_file(path) as slow:
        slow.write(b"slow, ")
        with _archive.atomic_file(path) as quick:
            quick.write(b"quick")
        assert path.read_bytes() == b"quick"
        slow.write(b"and complete")
    assert path.read_bytes() == b"slow, and complete"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interruption_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with _archive.atomic_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failing_replacement_leaves_the_old_file(tmp_path, monkeypatch):
    def fail(source, target):
        raise PermissionError("no")

    path = tmp_path / "layer.npz"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError):
        _archive.write(path, HEADER, ARRAYS)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["layer.npz"]


def test_a_missing_folder_is_an_error_of_the_system(tmp_path):
    path = tmp_path / "missing" / "layer.npz"
    with pytest.raises(FileNotFoundError):
        _archive.write(path, HEADER, ARRAYS)
    with pytest.raises(FileNotFoundError):
        _archive.read(path)


# ---------------------------------------------------------------- damaged files


def test_a_file_truncated_at_any_length_is_rejected():
    intact = content()
    for length in range(len(intact)):
        with pytest.raises(FormatError):
            read(intact[:length])


@pytest.mark.parametrize("mask", [1, 2, 4, 8, 12, 14, 16, 32, 64, 128, 255])
def test_a_damaged_byte_never_changes_the_contents_or_raises_another_error(mask):
    intact = content()
    for index in range(len(intact)):
        damaged = bytearray(intact)
        damaged[index] ^= mask
        assert_same_or_rejected(bytes(damaged))


@given(changes=st.lists(st.tuples(st.integers(0, len(content()) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_several_damaged_bytes_raise_no_other_error(changes):
    damaged = bytearray(content())
    for index, value in changes:
        damaged[index] = value
    assert_same_or_rejected(bytes(damaged))


@given(data=st.binary(max_size=200))
def test_random_bytes_are_rejected(data):
    with pytest.raises(FormatError):
        read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"just text",
        npy(np.ones(3)),
        zipped({}),
        zipped({"a.npy": npy(np.ones(3))}),
        zipped({"lora_np.json": b"{"}),
        zipped({"lora_np.json": b"\xff\xfe"}),
        zipped({"lora_np.json": b"[" * 100_000}),
        zipped({"lora_np.json": b"[]"}),
        zipped({"lora_np.json": b'"lora_np"'}),
    ],
    ids=["empty", "text", "npy", "empty zip", "plain npz", "half JSON", "not UTF-8", "deep JSON", "a list", "a string"],
)
def test_other_files_are_rejected(data):
    with pytest.raises(FormatError, match="the stream is not a lora_np file"):
        read(data)


@pytest.mark.parametrize("value", [None, "other", 1, ["lora_np"]], ids=repr)
def test_another_format_is_rejected(value):
    with pytest.raises(FormatError, match=re.escape(f"is not a lora_np file: the format in its header is {value!r}")):
        read(content(HEADER | {"format": value}))


@pytest.mark.parametrize("value", [2, 0, None, "1", [1]], ids=repr)
def test_another_version_is_rejected_and_named(value):
    with pytest.raises(FormatError, match=re.escape(f"format version {value!r}; this lora_np reads version 1")):
        read(content(HEADER | {"version": value}))


def test_the_message_names_the_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"text")
    with pytest.raises(FormatError, match=re.escape(str(path))):
        _archive.read(path)


def test_objects_are_not_unpickled():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was executed",)

    with pytest.raises(FormatError, match="Object arrays"):
        read(with_array(npy(np.array([Trap()], dtype=object), allow_pickle=True)))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"text",
        npy(np.ones(3))[:-1],
        npy_with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
        npy_with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"),
        npy_with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000000000000,), }"),
        npy_with_header("{'descr': ',f8', 'fortran_order': False, 'shape': (3,), }"),
        npy_with_header("{'descr': '<f8', 3: False, 'shape': (3,), }"),
        npy_with_header("{'descr': '<f8', 'shape': (3,), }"),
        npy_with_header("(((((("),
        npy_with_header("{[]: 1}"),
        npy_with_header("[" * 2000),
    ],
    ids=[
        "empty",
        "text",
        "truncated",
        "negative size",
        "more than the memory",
        "more than 64 bits",
        "bad dtype",
        "a number as a key",
        "a missing key",
        "open brackets",
        "unhashable key",
        "deep",
    ],
)
def test_a_damaged_array_is_rejected(payload):
    with pytest.raises(FormatError):
        read(with_array(payload))


@pytest.mark.filterwarnings("ignore")  # NumPy warns about headers that look like those of Python 2
@pytest.mark.parametrize("mask", [1, 2, 4, 8, 16, 32, 64, 128, 255])
def test_a_damaged_byte_of_an_array_raises_no_other_error(mask):
    intact = npy(np.arange(3.0))
    for index in range(len(intact)):
        damaged = bytearray(intact)
        damaged[index] ^= mask
        try:
            read(with_array(bytes(damaged)))
        except FormatError:
            continue


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["zlib", "bz2", "lzma"])
def test_a_damaged_byte_of_a_compressed_file_raises_no_other_error(method):
    intact = zipped({"lora_np.json": json.dumps(HEADER), "a.npy": npy(ARRAYS["a"])}, method)
    for index in range(len(intact)):
        assert_same_or_rejected(intact[:index] + bytes([intact[index] ^ 255]) + intact[index + 1 :])
