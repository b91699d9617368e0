"""safetensors files: exact round trips, agreement with the safetensors package, rejection of damaged files."""

import contextlib
import gc
import json
import mmap
import os
import struct
import sys
import time
import tracemalloc
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lora_np import ArgumentError
from lora_np.errors import FormatError
from lora_np.io import _safetensors_header, safetensors
from lora_np.io.safetensors import (
    DTYPES,
    SafetensorsFile,
    Stored,
    TensorInfo,
    decoded,
    encoded,
    load_safetensors,
    save_safetensors,
    stream_safetensors,
)

NATIVE = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
"""The dtypes that NumPy has as well: all but BF16."""

ODD_NAMES = ["", " ", "a.b/c", "Å∂ 漢字 🙂", "\"quoted\\'", "\x00\x01\x1f\b\f\n\r\t\x7f", "\u2028\ufeff\uffff", "dtype"]

names = st.text(max_size=8).filter(lambda name: name != "__metadata__")
dtypes = st.sampled_from(list(NATIVE))
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
arrays = dtypes.flatmap(lambda name: hnp.arrays(NATIVE[name], shapes))
tensor_mappings = st.dictionaries(names, arrays, max_size=6)
metadata_mappings = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="module")
def shared_path(tmp_path_factory):
    """One file for all examples of a property."""
    return tmp_path_factory.mktemp("safetensors") / "model.safetensors"


@pytest.fixture
def package():
    return pytest.importorskip("safetensors.numpy")


def assert_same(actual, expected):
    """Assert bitwise equality, including NaNs and signed zeros."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype.newbyteorder("<")
    assert actual.tobytes() == expected.astype(actual.dtype).tobytes()


def assert_same_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_same(actual[name], expected[name])


def saved(path, tensors, metadata=None, **keywords):
    """Save the tensors and return the bytes of the file."""
    save_safetensors(path, tensors, metadata, **keywords)
    return path.read_bytes()


def header_of(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])


def file_bytes(header, buffer=b""):
    """A file with the given header (text, bytes or a JSON value) and data."""
    if not isinstance(header, str | bytes):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return len(header).to_bytes(8, "little") + header + buffer


def entry(dtype="F32", shape=(1,), data_offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(data_offsets)}


def peak_memory(action):
    """The peak number of bytes that the action allocates."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- round trips


@given(dtype=dtypes, shape=shapes, data=st.data())
def test_every_dtype_and_shape_round_trips_exactly(shared_path, dtype, shape, data):
    array = data.draw(hnp.arrays(NATIVE[dtype], shape))
    save_safetensors(shared_path, {"tensor": array})
    with SafetensorsFile(shared_path) as file:
        assert file.info("tensor") == TensorInfo(dtype, shape)
        assert_same(file["tensor"], array)


@given(tensor_mappings, metadata_mappings)
def test_tensors_and_metadata_round_trip_exactly(shared_path, tensors, metadata):
    save_safetensors(shared_path, tensors, metadata)
    assert_same_tensors(load_safetensors(shared_path), tensors)
    with SafetensorsFile(shared_path) as file:
        assert file.metadata == metadata


LAYOUTS = {
    "transposed": lambda array: array.T,
    "fortran": np.asfortranarray,
    "reversed": lambda array: array[::-1, ::-1],
    "strided": lambda array: array[::2, 1::2],
    "broadcast": lambda array: np.broadcast_to(array[0], array.shape),
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "unaligned": lambda array: np.frombuffer(b"\0" + array.tobytes(), array.dtype, array.size, 1).reshape(array.shape),
}
"""Each turns a matrix into another array; those of "broadcast" and "unaligned" are also read-only."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", NATIVE)
def test_any_memory_layout_is_written_in_row_major_order(path, dtype, layout):
    array = LAYOUTS[layout](np.arange(35).reshape(5, 7).astype(NATIVE[dtype]))
    save_safetensors(path, {"tensor": array})
    assert_same(load_safetensors(path)["tensor"], array)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_is_converted_in_row_major_order(path, layout):
    array = LAYOUTS[layout](np.arange(35.0).reshape(5, 7))
    save_safetensors(path, {"tensor": array}, dtypes={"tensor": "BF16"})
    np.testing.assert_array_equal(load_safetensors(path)["tensor"], array)


@pytest.mark.parametrize("count", [mmap.ALLOCATIONGRANULARITY + difference for difference in (-1, 0, 1)])
def test_tensors_beyond_the_first_page_round_trip(path, count):
    tensors = {name: np.arange(count, dtype=np.uint16) + ord(name) for name in "abc"}
    save_safetensors(path, tensors)
    assert_same_tensors(load_safetensors(path), tensors)


def test_a_file_can_be_overwritten_with_its_own_lazy_tensors(path):
    before = saved(path, {"a": np.arange(5.0), "b": np.ones((2, 3), np.float32)})
    with SafetensorsFile(path) as file:
        assert saved(path, file) == before


def test_loaded_arrays_are_independent_of_the_file(path):
    save_safetensors(path, {"a": np.zeros(3)})
    load_safetensors(path)["a"][:] = 1
    assert not load_safetensors(path)["a"].any()


# ---------------------------------------------------------------- bytes


def test_a_known_file(path):
    header = '{"__metadata__":{"k":"v"},"é":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}'.encode()
    data = saved(path, {"é": np.array([[1.0], [-2.0]], np.float32)}, {"k": "v"})
    assert data == struct.pack("<Q", 88) + header.ljust(88) + struct.pack("<ff", 1, -2)


@given(tensor_mappings, metadata_mappings, st.randoms())
def test_equal_contents_give_equal_bytes_in_any_order(shared_path, tensors, metadata, random):
    def shuffled(mapping):
        return dict(random.sample(list(mapping.items()), len(mapping)))

    data = saved(shared_path, tensors, metadata)
    assert saved(shared_path, shuffled(tensors), shuffled(metadata)) == data


@given(tensor_mappings, metadata_mappings)
def test_the_header_is_sorted_and_padded(shared_path, tensors, metadata):
    data = saved(shared_path, tensors, metadata)
    header = header_of(data)
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert list(header.pop("__metadata__", {})) == sorted(metadata)
    assert list(header) == sorted(tensors, key=lambda name: (list(DTYPES).index(header[name]["dtype"]), name))


def test_descending_alignment_aligns_every_tensor(path):
    data = saved(path, {dtype: np.ones(3, native) for dtype, native in NATIVE.items()})
    for dtype, described in header_of(data).items():
        assert described["data_offsets"][0] % np.dtype(NATIVE[dtype]).itemsize == 0


def test_without_metadata_none_is_written(path):
    assert saved(path, {}, {}) == saved(path, {}) == file_bytes("{}      ")


# ---------------------------------------------------------------- agreement with the safetensors package


@given(tensors=tensor_mappings, metadata=st.none() | st.fixed_dictionaries({"key": st.text(max_size=8)}))
@example({name: np.ones(2, np.float32) for name in ODD_NAMES}, None)
@example({dtype: np.ones((2, 3), native) for dtype, native in NATIVE.items()}, {"key": "".join(ODD_NAMES)})
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_package_writes_the_same_bytes(shared_path, package, tensors, metadata):
    assert saved(shared_path, tensors, metadata) == package.save(tensors, metadata)


@given(tensor_mappings, metadata_mappings)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_package_reads_our_files(shared_path, package, tensors, metadata):
    assert_same_tensors(package.load(saved(shared_path, tensors, metadata)), tensors)


@given(tensors=tensor_mappings, metadata=metadata_mappings.filter(bool))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_of_the_package_are_read(shared_path, package, tensors, metadata):
    package.save_file(tensors, shared_path, metadata)
    assert_same_tensors(load_safetensors(shared_path), tensors)
    with SafetensorsFile(shared_path) as file:
        assert file.metadata == metadata


def test_the_package_finds_the_stored_bytes_of_bf16(path):
    package = pytest.importorskip("safetensors")
    data = saved(path, {"t": np.array([[1.0, -2.0]])}, dtypes={"t": "BF16"})
    [(name, tensor)] = package.deserialize(data)
    assert (name, tensor["dtype"], tensor["shape"]) == ("t", "BF16", [1, 2])
    assert bytes(tensor["data"]) == b"\x80\x3f\x00\xc0"


# ---------------------------------------------------------------- BF16


def magnitude(pattern):
    """The value of 15 bits of BF16; infinity counts as the power of two after the largest number."""
    if pattern == 0x7F80:
        return Fraction(2) ** 128
    return Fraction(struct.unpack("<f", struct.pack("<I", pattern << 16))[0])


def nearest_bf16(bits):
    """The BF16 pattern nearest to a finite float32, given as bits; ties go to the even pattern."""
    sign, below = bits >> 31 << 15, bits >> 16 & 0x7FFF
    exact = abs(Fraction(struct.unpack("<f", struct.pack("<I", bits))[0]))
    down, up = exact - magnitude(below), magnitude(below + 1) - exact
    return sign | (below + 1 if up < down or (up == down and below % 2) else below)


def bf16_of(bits):
    return encoded(np.array([bits], np.uint32).view(np.float32), "BF16").item()


@given(
    st.integers(0, 1),
    st.integers(0, 0x7F7F),
    st.integers(0, 0xFFFF) | st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]),
)
def test_bf16_rounds_to_the_nearest_ties_to_even(sign, high, low):
    bits = sign << 31 | high << 16 | low
    assert bf16_of(bits) == nearest_bf16(bits)


SPECIAL_NUMBERS = {
    "tie, down to even": (0x3F80_8000, 0x3F80),
    "tie, up to even": (0x3F81_8000, 0x3F82),
    "just above a tie": (0x3F80_8001, 0x3F81),
    "just below a tie": (0x3F81_7FFF, 0x3F81),
    "carry into the exponent": (0x3FFF_8000, 0x4000),
    "largest that stays finite": (0x7F7F_7FFF, 0x7F7F),
    "overflow": (0x7F7F_8000, 0x7F80),
    "negative overflow": (0xFF7F_FFFF, 0xFF80),
    "infinity": (0x7F80_0000, 0x7F80),
    "negative infinity": (0xFF80_0000, 0xFF80),
    "negative zero": (0x8000_0000, 0x8000),
    "smallest subnormal": (0x0000_0001, 0x0000),
    "half the smallest": (0x0000_8000, 0x0000),
    "above half the smallest": (0x0000_8001, 0x0001),
    "subnormal to normal": (0x007F_FFFF, 0x0080),
    "quiet NaN": (0x7FC0_0000, 0x7FC0),
    "negative NaN": (0xFFC0_0000, 0x7FC0),
    "NaN in the low bits": (0x7F80_0001, 0x7FC0),
    "NaN of all ones": (0xFFFF_FFFF, 0x7FC0),
}
"""The bits of float32 numbers, and the BF16 patterns they round to."""


@pytest.mark.parametrize("number", SPECIAL_NUMBERS)
def test_bf16_of_special_numbers(number):
    bits, expected = SPECIAL_NUMBERS[number]
    assert bf16_of(bits) == expected


def test_every_bf16_pattern_round_trips_except_that_nans_become_canonical(path):
    patterns = np.arange(2**16, dtype=np.uint16)
    stream_safetensors(path, {"t": TensorInfo("BF16", (2**16,))}, lambda name: patterns)
    values = load_safetensors(path)["t"]
    save_safetensors(path, {"t": values}, dtypes={"t": "BF16"})
    with SafetensorsFile(path) as file:
        np.testing.assert_array_equal(file.raw("t"), np.where(np.isnan(values), 0x7FC0, patterns))


@pytest.mark.parametrize("dtype", ["BOOL", "I64", "U8", "F16", "F64"])
def test_any_dtype_converts_to_bf16(path, dtype):
    save_safetensors(path, {"t": np.array([0, 1, 1], NATIVE[dtype])}, dtypes={"t": "BF16"})
    assert_same(load_safetensors(path)["t"], np.array([0, 1, 1], np.float32))


# ---------------------------------------------------------------- other conversions


@pytest.mark.parametrize(
    ("array", "dtype", "expected"),
    [
        (np.array([1.0, 1 / 3, -65504], np.float32), "F16", np.array([1.0, 1 / 3, -65504], np.float16)),
        (np.array([[np.pi, -0.0, np.inf]]), "F32", np.array([[np.pi, -0.0, np.inf]], np.float32)),
        (np.array([0.5], np.float16), "F64", np.array([0.5])),
        (np.array([-1, 2]), "I8", np.array([-1, 2], np.int8)),
        (np.array([True, False]), "U8", np.array([1, 0], np.uint8)),
        (np.array([0.0, 0.5, -1.0, 256.0]), "BOOL", np.array([False, True, True, True])),
        (np.array(3.0), "F32", np.array(3.0, np.float32)),
    ],
)
def test_a_tensor_is_written_in_the_requested_dtype(path, array, dtype, expected):
    save_safetensors(path, {"t": array, "other": array}, dtypes={"t": dtype})
    loaded = load_safetensors(path)
    assert_same(loaded["t"], expected)
    assert_same(loaded["other"], array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoding_and_encoding_agree(dtype):
    stored = np.array([0, 1, 1, 0], DTYPES[dtype])
    assert_same(encoded(decoded(stored, dtype), dtype), stored)


# ---------------------------------------------------------------- the mapping


def test_a_file_is_a_mapping_in_the_order_of_its_header(path):
    header = {"z": entry(data_offsets=(4, 8)), "a": entry(), "empty": entry(shape=[0], data_offsets=[4, 4])}
    path.write_bytes(file_bytes(header, struct.pack("<ff", 1, 2)))
    with SafetensorsFile(path) as file:
        assert {name: array.tolist() for name, array in file.items()} == {"z": [2.0], "a": [1.0], "empty": []}
        assert list(file) == list(header)
        assert len(file) == 3
        assert "a" in file
        assert "b" not in file


@pytest.mark.parametrize("method", [SafetensorsFile.__getitem__, SafetensorsFile.info, SafetensorsFile.raw])
def test_an_unknown_name_is_a_key_error(path, method):
    save_safetensors(path, {"a": np.ones(1)})
    with SafetensorsFile(path) as file, pytest.raises(KeyError, match="b"):
        method(file, "b")


def test_info_has_dtype_shape_and_sizes(path):
    save_safetensors(path, {"a": np.ones((2, 0)), "b": np.ones((2, 3))}, dtypes={"b": "BF16"})
    with SafetensorsFile(path) as file:
        a, b = file.info("a"), file.info("b")
    assert (a.dtype, a.shape, a.size, a.nbytes) == ("F64", (2, 0), 0, 0)
    assert (b.dtype, b.shape, b.size, b.nbytes) == ("BF16", (2, 3), 6, 12)


def test_repr_shows_the_path_and_the_number_of_tensors(path):
    save_safetensors(str(path), {"a": np.ones(1)})
    with SafetensorsFile(str(path)) as file:
        assert repr(file) == f"SafetensorsFile({str(path)!r}, 1 tensors)"


@given(dtype=st.sampled_from(list(DTYPES)), start=st.integers(-30, 30), stop=st.none() | st.integers(-30, 30))
def test_raw_returns_a_slice_of_the_stored_elements(shared_path, dtype, start, stop):
    stored = np.arange(24).astype(DTYPES[dtype])
    infos = {"t": TensorInfo(dtype, (4, 6)), "before": TensorInfo("U64", (mmap.ALLOCATIONGRANULARITY // 8 - 1,))}
    stream_safetensors(shared_path, infos, {"t": stored, "before": np.zeros(infos["before"].shape, "<u8")}.get)
    with SafetensorsFile(shared_path) as file:
        assert_same(file.raw("t", start, stop), stored[start:stop])


def test_nothing_is_mapped_of_an_empty_slice(path):
    header = json.dumps({"a": entry("U8", [96], [0, 96]), "z": entry("U8", [0], [96, 96])})
    path.write_bytes(file_bytes(header.ljust(mmap.ALLOCATIONGRANULARITY - 8 - 96), bytes(96)))  # ends with a page
    with SafetensorsFile(path) as file:
        assert file["z"].shape == file.raw("a", 5, 3).shape == file.raw("a", 96).shape == (0,)


# ---------------------------------------------------------------- laziness and lifetime


LARGE = 2**30  # elements of BF16: two gigabytes, which take next to no space in a sparse file


@pytest.fixture(scope="module")
def large_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("safetensors") / "large.safetensors"
    header = {"large": entry("BF16", [LARGE], [0, 2 * LARGE]), "small": entry("F32", [2], [2 * LARGE, 2 * LARGE + 8])}
    start = file_bytes(header)
    path.write_bytes(start)
    os.truncate(path, len(start) + 2 * LARGE)
    with open(path, "ab") as file:
        file.write(struct.pack("<ff", 1, 2))
    return path


LAZY = {
    "open": lambda file: None,
    "look at a name": lambda file: "large" in file,
    "look at an info": lambda file: file.info("large").nbytes,
    "read a small tensor": lambda file: file["small"].sum(),
    "read a piece of a large one": lambda file: file.raw("large", LARGE // 2, LARGE // 2 + 100).sum(),
    "read one element of a large one": lambda file: file.raw("large")[-1],
}


@pytest.mark.parametrize("action", LAZY)
def test_a_large_file_needs_little_memory(large_path, action):
    def act():
        with SafetensorsFile(large_path) as file:
            LAZY[action](file)

    assert peak_memory(act) < 2**16


def test_a_small_tensor_of_a_large_file_is_correct(large_path):
    with SafetensorsFile(large_path) as file:
        assert file["small"].tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [dtype for dtype in NATIVE if dtype != "BOOL"])
def test_arrays_share_the_file_and_are_read_only(path, dtype):
    save_safetensors(path, {"t": np.ones((2, 3), NATIVE[dtype])})
    with SafetensorsFile(path) as file, pytest.raises(ValueError, match="read-only"):
        file["t"][0, 0] = 0


@pytest.mark.parametrize("dtype", ["BOOL", "BF16"])
def test_dtypes_that_need_decoding_become_new_arrays(path, dtype):
    before = saved(path, {"t": np.ones((2, 3))}, dtypes={"t": dtype})
    with SafetensorsFile(path) as file:
        file["t"][:] = 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_is_read_only(path, dtype):
    save_safetensors(path, {"t": np.ones(3)}, dtypes={"t": dtype})
    with SafetensorsFile(path) as file, pytest.raises(ValueError, match="read-only"):
        file.raw("t")[0] = 0


def test_arrays_stay_valid_after_close(path):
    values = np.arange(1000.0).reshape(10, 100)
    save_safetensors(path, {"t": values})
    file = SafetensorsFile(path)
    array, raw = file["t"], file.raw("t", 500)
    file.close()
    del file
    gc.collect()
    assert_same(array, values)
    assert_same(raw, values.reshape(-1)[500:])


def test_a_closed_file_cannot_be_read(path):
    save_safetensors(path, {"t": np.ones(1)})
    with SafetensorsFile(path) as file:
        pass
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file["t"]


def test_a_rejected_file_is_closed(path, monkeypatch):
    opened = []

    def recording(*arguments):
        opened.append(open(*arguments))  # noqa: SIM115
        return opened[-1]

    monkeypatch.setattr("lora_np.io._tensor_file.open", recording, raising=False)
    path.write_bytes(b"")
    with pytest.raises(FormatError):
        SafetensorsFile(path)
    assert [file.closed for file in opened] == [True]


def test_a_missing_file_is_not_a_format_error(path):
    with pytest.raises(FileNotFoundError):
        SafetensorsFile(path)


# ---------------------------------------------------------------- files that the reader accepts


ACCEPTED = {
    "no tensor": file_bytes("{}"),
    "a header without padding": file_bytes('{"t":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"\1"),
    "spaces": file_bytes(' { "t" : { "dtype" : "U8" , "shape" : [ ] , "data_offsets" : [ 0 , 1 ] } } '[1:], b"\1"),
    "escaped names": file_bytes('{"\\u0074":{"\\u0064type":"U8","shape":[],"data_offsets":[0,1]}}', b"\1"),
    "empty metadata": file_bytes({"__metadata__": {}}),
    "empty tensors between": file_bytes(
        {"c": entry("U8", [1], [1, 2]), "b": entry("U8", [0], [1, 1]), "a": entry("U8", [1], [0, 1])}, b"\1\2"
    ),
    "64 dimensions": file_bytes({"t": entry(shape=[1] * 64)}, bytes(4)),
    "an unaligned tensor": file_bytes({"a": entry("U8", [1], [0, 1]), "b": entry("F64", [1], [1, 9])}, bytes(9)),
}


def assert_read_correctly(path):
    """Every tensor has the bytes that the header assigns to it, and together they fill the buffer."""
    data = path.read_bytes()
    header = header_of(data)
    buffer = data[8 + int.from_bytes(data[:8], "little") :]
    with SafetensorsFile(path) as file:
        assert file.metadata == header.pop("__metadata__", {})
        assert list(file) == list(header)
        for name, described in header.items():
            begin, end = described["data_offsets"]
            assert file.raw(name).tobytes() == buffer[begin:end]
            assert file.info(name) == TensorInfo(described["dtype"], tuple(described["shape"]))
            assert_same(file[name], decoded(file.raw(name), described["dtype"]).reshape(described["shape"]))
    assert sum(file.info(name).nbytes for name in header) == len(buffer)


@pytest.mark.parametrize("kind", ACCEPTED)
def test_unusual_but_valid_files_are_read(path, kind):
    path.write_bytes(ACCEPTED[kind])
    assert_read_correctly(path)


def test_every_nonzero_byte_is_true(path):
    path.write_bytes(file_bytes({"t": entry("BOOL", [4], [0, 4])}, b"\x00\x01\x02\xff"))
    assert load_safetensors(path)["t"].tolist() == [False, True, True, True]


# ---------------------------------------------------------------- files that the reader rejects


def rejection(path, data):
    """The message of the error that a file raises."""
    path.write_bytes(data)
    with pytest.raises(FormatError) as raised:
        SafetensorsFile(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


T = '"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

REJECTED_FILES = {
    "nothing": (b"", "at least 8 bytes"),
    "half a length": (bytes(7), "at least 8 bytes"),
    "a length beyond the file": (struct.pack("<Q", 3) + b"{}", "the header length, 3 bytes, exceeds the file (10 bytes)"),
    "the largest length": (
        struct.pack("<Q", 2**64 - 1) + b"{}",
        "the header length, 18,446,744,073,709,551,615 bytes, exceeds",
    ),
    "no header": (bytes(8), "opening brace"),
    "a space first": (file_bytes(" {}"), "opening brace"),
    "a byte order mark": (file_bytes("\ufeff{}"), "opening brace"),
    "a list": (file_bytes("[]"), "opening brace"),
    "null": (file_bytes("null"), "opening brace"),
    "Latin-1": (file_bytes('{"__metadata__":{"k":"é"}}'.encode("latin-1")), "utf-8"),
    "UTF-16": (file_bytes("{}".encode("utf-16-le")), "not valid"),
    "half a header": (file_bytes('{"t":'), "not valid"),
    "a control character": (file_bytes('{"__metadata__":{"k":"\n"}}'), "control character"),
    "a second object": (file_bytes("{}{}"), "Extra data"),
    "a word after the object": (file_bytes("{}  x"), "Extra data"),
    "zero bytes as padding": (file_bytes(b"{}\0\0"), "Extra data"),
    "a tensor twice": (file_bytes(f"{{{T},{T}}}", bytes(4)), "'t' occurs twice"),
    "a tensor twice, once escaped": (
        file_bytes(f"{{{T},{T}}}".replace('"t"', '"\\u0074"', 1), bytes(4)),
        "'t' occurs twice",
    ),
    "metadata twice": (file_bytes('{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' occurs twice"),
    "a metadata key twice": (file_bytes('{"__metadata__":{"k":"","k":""}}'), "'k' occurs twice"),
    "a key twice": (file_bytes(f"{{{T}}}".replace('"shape"', '"shape":[1],"shape"'), bytes(4)), "'shape' occurs twice"),
    "NaN": (file_bytes('{"__metadata__":{"k":NaN}}'), "NaN is not valid JSON"),
    "Infinity": (file_bytes('{"t":Infinity}'), "Infinity is not valid JSON"),
    "-Infinity": (file_bytes('{"t":[-Infinity]}'), "-Infinity is not valid JSON"),
    "deep objects": (file_bytes('{"t":' * 10_000), "recursion"),
    "deep lists": (file_bytes('{"t":' + "[" * 10_000), "recursion"),
    "an integer of 5000 digits": (file_bytes('{"t":' + "9" * 5000 + "}"), "not valid"),
    "null metadata": (file_bytes({"__metadata__": None}), "__metadata__ must map strings to strings"),
    "metadata as a list": (file_bytes({"__metadata__": ["k"]}), "__metadata__ must map strings to strings"),
    "metadata with a number": (file_bytes({"__metadata__": {"k": 1}}), "__metadata__ must map strings to strings"),
    "metadata with an object": (file_bytes({"__metadata__": {"k": {}}}), "__metadata__ must map strings to strings"),
    "metadata as a tensor": (file_bytes({"__metadata__": entry()}, bytes(4)), "must map strings to strings"),
    "data without a tensor": (file_bytes("{}", b"\0"), "tensors end at byte 10, but the file ends at byte 11"),
    "data after the last tensor": (file_bytes({"t": entry()}, bytes(5)), "tensors end at byte"),
    "the last value truncated": (file_bytes({"t": entry()}, bytes(3)), "tensors end at byte"),
}
"""Files, and a part of the expected message."""


@pytest.mark.parametrize("kind", REJECTED_FILES)
def test_a_damaged_file_is_rejected(path, kind):
    data, words = REJECTED_FILES[kind]
    assert words in rejection(path, data)


HUGE = 10**4000  # below the limit on digits at which Python refuses to convert a string

REJECTED_ENTRIES = {
    "a list": ([], "must have exactly the keys dtype, shape and data_offsets"),
    "null": (None, "must have exactly the keys dtype, shape and data_offsets"),
    "without dtype": ({"shape": [1], "data_offsets": [0, 4]}, "must have exactly the keys dtype, shape and data_offsets"),
    "without shape": ({"dtype": "F32", "data_offsets": [0, 4]}, "must have exactly the keys dtype, shape and data_offsets"),
    "without data_offsets": ({"dtype": "F32", "shape": [1]}, "must have exactly the keys dtype, shape and data_offsets"),
    "with another key": (entry() | {"more": 1}, "must have exactly the keys dtype, shape and data_offsets"),
    "unknown dtype": (entry(dtype="F8_E4M3"), "dtype must be one of U64, I64"),
    "lower-case dtype": (entry(dtype="f32"), "'f32'"),
    "dtype as a list": (entry(dtype=["F32"]), "dtype must be one of"),
    "dtype null": (entry(dtype=None), "dtype must be one of"),
    "negative size": (entry(shape=[-1]), "shape must be a list of at most 64 non-negative integers"),
    "two negative sizes": (entry(shape=[-1, -1]), "shape must be a list"),
    "float size": (entry(shape=[1.0]), "shape must be a list"),
    "infinite size": ('{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}', "shape must be a list"),
    "boolean size": (entry(shape=[True]), "shape must be a list"),
    "size as text": (entry(shape=["1"]), "shape must be a list"),
    "size as a list": (entry(shape=[[1]]), "shape must be a list"),
    "shape as a number": (entry() | {"shape": 1}, "shape must be a list"),
    "shape as an object": (entry() | {"shape": {}}, "shape must be a list"),
    "65 dimensions": (entry(shape=[1] * 65), "shape must be a list of at most 64 non-negative integers"),
    "negative offset": (entry(data_offsets=[-4, 0]), "data_offsets must be two non-negative integers"),
    "float offset": (entry(data_offsets=[0, 4.0]), "data_offsets must be two non-negative integers"),
    "boolean offset": (entry(data_offsets=[False, 4]), "data_offsets must be two non-negative integers"),
    "offset null": (entry(data_offsets=[None, 4]), "data_offsets must be two non-negative integers"),
    "one offset": (entry(data_offsets=[0]), "data_offsets must be two non-negative integers"),
    "three offsets": (entry(data_offsets=[0, 4, 8]), "data_offsets must be two non-negative integers"),
    "offsets as a number": (entry() | {"data_offsets": 4}, "data_offsets must be two non-negative integers"),
    "too few bytes": (entry(data_offsets=[0, 3]), "takes 4 bytes, but data_offsets are [0, 3]"),
    "too many bytes": (entry(shape=[]) | {"data_offsets": [0, 8]}, "takes 4 bytes, but data_offsets are [0, 8]"),
    "offsets in descending order": (entry(shape=[0], data_offsets=[4, 0]), "takes 0 bytes"),
    "more bytes than data_offsets": (entry(shape=[2**40], data_offsets=[0, 2**40]), "takes 4398046511104 bytes"),
    "a shape too large": (entry(shape=[2**62]), "shape is too large"),
    "the largest shape": (entry("U8", shape=[sys.maxsize]), f"takes {sys.maxsize} bytes"),
    "a product too large": (entry(shape=[2**32, 2**32]), "shape is too large"),
    "a product that is zero modulo 2**64": (entry(shape=[2**32, 2**32], data_offsets=[0, 0]), "shape is too large"),
    "too large beside a zero": (entry(shape=[2**62, 0, 2], data_offsets=[0, 0]), "shape is too large"),
    "a huge size": (entry(shape=[HUGE] * 64), "shape is too large"),
    "a huge end": (entry(data_offsets=[0, HUGE]), "takes 4 bytes"),
    "huge offsets": (entry(data_offsets=[HUGE, HUGE + 4]), "leaves a hole"),
    "a hole at the beginning": (entry(data_offsets=[1, 5]), "leaves a hole before it: it begins at 1, not 0"),
}
"""Values for the entry of the only tensor, or their JSON, and a part of the expected message."""


@pytest.mark.parametrize("kind", REJECTED_ENTRIES)
def test_an_invalid_entry_is_rejected(path, kind):
    described, words = REJECTED_ENTRIES[kind]
    text = described if isinstance(described, str) else json.dumps(described)
    message = rejection(path, file_bytes(f'{{"t":{text}}}', bytes(4)))
    assert f"{path}: tensor 't'" in message
    assert words in message


REJECTED_SPANS = {
    "hole": ([0, 4], [5, 9], "'b' leaves a hole before it: it begins at 5, not 4"),
    "overlap": ([0, 4], [3, 7], "'b' overlaps another tensor: it begins at 3, not 4"),
    "the same bytes": ([0, 4], [0, 4], "'b' overlaps another tensor: it begins at 0, not 4"),
    "one within the other": ([0, 8], [2, 4], "'b' overlaps another tensor"),
    "an empty one within the other": ([0, 8], [4, 4], "'b' overlaps another tensor"),
    "an empty one after the end": ([0, 8], [9, 9], "'b' leaves a hole before it"),
    "hole at the beginning": ([1, 5], [5, 9], "'a' leaves a hole before it"),
    "hole in a header out of order": ([5, 9], [0, 4], "'a' leaves a hole before it"),
}


@pytest.mark.parametrize("kind", REJECTED_SPANS)
def test_holes_and_overlaps_are_rejected(path, kind):
    a, b, words = REJECTED_SPANS[kind]
    header = {name: entry("U8", [end - begin], [begin, end]) for name, (begin, end) in {"a": a, "b": b}.items()}
    message = rejection(path, file_bytes(header, bytes(max(a[1], b[1]))))
    assert f"{path}: tensor {words}" in message


def test_a_header_of_more_than_a_hundred_million_bytes_is_rejected_unread(path):
    path.write_bytes(struct.pack("<Q", 100_000_001) + b"{")
    os.truncate(path, 200_000_000)

    def read():
        with pytest.raises(
            FormatError, match=r"the header length, 100,000,001 bytes, exceeds .* the limit of 100,000,000 bytes"
        ):
            SafetensorsFile(path)

    assert peak_memory(read) < 2**16


def test_one_duplicate_among_many_names_is_found_quickly(path):
    many = ",".join(f'"{number}":0' for number in range(50_000))
    start = time.process_time()
    assert "'49999' occurs twice" in rejection(path, file_bytes(f'{{{many},"49999":0}}'))
    assert time.process_time() - start < 5


# ---------------------------------------------------------------- fuzzing


HEADER = {
    "__metadata__": {"key": "value", "other": "1"},
    "a": entry("F32", [2, 1], [0, 8]),
    "b": entry("BF16", [3], [8, 14]),
    "c": entry("BOOL", [], [14, 15]),
    "d": entry("I64", [0, 2], [15, 15]),
    "e": entry("U8", [2], [15, 17]),
}
BUFFER = bytes(range(17))

snippets = st.binary(max_size=6) | st.text('0123456789-.eE"[]{},: \\u', max_size=6).map(str.encode)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(list(DTYPES)),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw, data):
    """Bytes of which some are overwritten, removed or inserted."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        data = data[:start] + draw(snippets) + data[start + draw(st.integers(0, 6)) :]
    return data


def damaged_files():
    return damaged(file_bytes(HEADER, BUFFER))


def damaged_headers():
    return damaged(json.dumps(HEADER).encode()).map(lambda header: file_bytes(header, BUFFER))


@st.composite
def changed_headers(draw):
    """A valid file in which one part of the header, at any depth, is replaced by another JSON value."""
    part = header = json.loads(json.dumps(HEADER))
    key = draw(st.sampled_from(list(header)))
    while part[key] and isinstance(part[key], dict | list) and draw(st.integers(0, 5)):
        part = part[key]
        key = draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
    part[key] = draw(st.integers(0, len(BUFFER)) | json_values)
    return file_bytes(header, BUFFER)


@pytest.mark.parametrize("files", [damaged_files, damaged_headers, changed_headers])
def test_a_damaged_file_is_rejected_or_read_correctly_in_little_memory(shared_path, files):
    @settings(max_examples=5 * settings().max_examples)
    @given(files())
    def check(data):
        shared_path.write_bytes(data)
        errors = []

        def read():
            try:
                load_safetensors(shared_path)
            except FormatError as error:
                errors.append(str(error))

        assert peak_memory(read) < 2**16 + 100 * len(data)
        if errors:
            assert str(shared_path) in errors[0]
        else:
            assert_read_correctly(shared_path)

    check()


def test_a_truncated_file_is_rejected(path):
    data = file_bytes(HEADER, BUFFER)
    for length in range(len(data)):
        rejection(path, data[:length])


# ---------------------------------------------------------------- arguments that the writer rejects


@contextlib.contextmanager
def leaves_untouched(path):
    """Afterwards the old file is unchanged, and the only one in its folder."""
    path.write_bytes(b"old")
    yield
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def ones(name):
    return np.ones(3, np.float32)


@pytest.mark.parametrize("name", ["__metadata__", 1, None, b"t", ("t",), "\ud800"])
def test_an_invalid_name_is_rejected(path, name):
    tensors = {"a": np.ones(3), name: np.ones(3)}
    with (
        leaves_untouched(path),
        pytest.raises(ArgumentError, match="tensor names must be valid Unicode strings other than") as raised,
    ):
        save_safetensors(path, tensors)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize("metadata", [{"k": 1}, {1: "v"}, {"k": "v", 1: "v"}, {"k": None}, {"k": "\udfff"}, {b"k": "v"}])
def test_invalid_metadata_is_rejected(path, metadata):
    with leaves_untouched(path), pytest.raises(ArgumentError, match="metadata must map strings to strings"):
        save_safetensors(path, {"t": np.ones(3)}, metadata)


@pytest.mark.parametrize("argument", ["tensors", "metadata", "dtypes"])
def test_what_is_no_mapping_is_rejected(path, argument):
    arguments = {"tensors": {"t": np.ones(3)}, argument: ["t"]}
    with leaves_untouched(path), pytest.raises(ArgumentError, match=f"^{argument} must be a mapping"):
        save_safetensors(path, **arguments)


NOT_REAL = [np.complex64, np.object_, "U3", "S3", "M8[s]", "m8[s]", [("field", "f4")]]


@pytest.mark.parametrize("dtype", NOT_REAL, ids=str)
def test_an_array_of_an_unsupported_dtype_is_rejected(path, dtype):
    with leaves_untouched(path), pytest.raises(ArgumentError, match="dtype of 't' must be one that safetensors supports"):
        save_safetensors(path, {"t": np.zeros(3, dtype)})


@pytest.mark.parametrize("target", ["F32", "BF16", "BOOL", "I64"])
@pytest.mark.parametrize("dtype", NOT_REAL, ids=str)
def test_values_that_are_not_real_are_rejected(path, dtype, target):
    with leaves_untouched(path), pytest.raises(ArgumentError, match="tensor 't' must hold real numbers"):
        save_safetensors(path, {"t": np.zeros(3, dtype)}, dtypes={"t": target})


@pytest.mark.parametrize("dtype", ["F8_E4M3", "f32", "float32", np.float32, 4])
def test_an_unknown_target_dtype_is_rejected(path, dtype):
    with leaves_untouched(path), pytest.raises(ArgumentError, match="dtype of 't' must be one of U64, I64"):
        save_safetensors(path, {"t": np.ones(3)}, dtypes={"t": dtype})


@pytest.mark.parametrize("shape", [(-3,), (-1, -3), (3.0,), (True, 3), ("3",), (1,) * 64 + (3,)], ids=str)
def test_an_impossible_shape_is_rejected(path, shape):
    with (
        leaves_untouched(path),
        pytest.raises(ArgumentError, match="shape of 't' must be at most 64 non-negative integers"),
    ):
        stream_safetensors(path, {"t": TensorInfo("F32", shape)}, ones)


WRONG_CONTENTS = {
    "no piece": (0, []),
    "too few values": (5, np.ones(5)),
    "too many values": (7, np.ones(7)),
    "too few in pieces": (5, [np.ones(3), np.ones((2, 1))]),
    "too many in pieces": (8, [np.ones((2, 3)), np.ones(0), np.ones(2)]),
}


@pytest.mark.parametrize("kind", WRONG_CONTENTS)
def test_too_few_or_too_many_values_are_rejected(path, kind):
    count, content = WRONG_CONTENTS[kind]
    words = f"tensor 't' must have 6 values for its shape (2, 3), got {count}"
    with leaves_untouched(path), pytest.raises(ArgumentError) as raised:
        stream_safetensors(path, {"t": TensorInfo("F32", (2, 3))}, lambda name: content)
    assert words in str(raised.value)


def test_a_header_that_no_reader_would_accept_is_rejected(path, monkeypatch):
    monkeypatch.setattr(_safetensors_header, "MAX_HEADER", 56)
    save_safetensors(path, {"t": np.ones(3)})
    assert load_safetensors(path)["t"].tolist() == [1, 1, 1]
    monkeypatch.setattr(_safetensors_header, "MAX_HEADER", 55)
    with leaves_untouched(path), pytest.raises(ArgumentError, match="at most 55 bytes, got 56"):
        save_safetensors(path, {"t": np.ones(3)})


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_content_leaves_the_old_file(path, error):
    def content(name):
        yield np.ones(1)
        raise error("stopped")

    with leaves_untouched(path), pytest.raises(error, match="stopped"):
        stream_safetensors(path, {"t": TensorInfo("F32", (3,))}, content)


def test_a_failure_leaves_no_new_file(path):
    with pytest.raises(ArgumentError):
        stream_safetensors(path, {"t": TensorInfo("F32", (2,))}, ones)
    assert os.listdir(path.parent) == []


# ---------------------------------------------------------------- streaming


@given(
    array=arrays,
    dtype=st.sampled_from(["F64", "BF16", "BOOL"]),
    cuts=st.lists(st.integers(0, 256), max_size=5).map(sorted),
)
def test_pieces_are_written_like_one_array(shared_path, array, dtype, cuts):
    with np.errstate(all="ignore"):
        whole = saved(shared_path, {"t": array}, dtypes={"t": dtype})
        pieces = np.split(array.reshape(-1), cuts)
        stream_safetensors(shared_path, {"t": TensorInfo(dtype, array.shape)}, lambda name: iter(pieces))
    assert shared_path.read_bytes() == whole


@given(st.binary(min_size=6 * 8, max_size=6 * 8))
def test_raw_passes_every_stored_byte_through(shared_path, buffer):
    infos = {dtype: TensorInfo(dtype, (2, 3)) for dtype in DTYPES}
    stored = {dtype: np.frombuffer(buffer, DTYPES[dtype], 6) for dtype in DTYPES}
    stream_safetensors(shared_path, infos, stored.get)
    before = shared_path.read_bytes()
    assert before.endswith(b"".join(array.tobytes() for array in stored.values()))
    with SafetensorsFile(shared_path) as file:
        stream_safetensors(shared_path, infos, file.raw)
    assert shared_path.read_bytes() == before


def test_raw_passes_through_in_pieces(path):
    before = saved(path, {"a": np.arange(100.0), "b": np.linspace(0, 1, 50)}, dtypes={"b": "BF16"})
    with SafetensorsFile(path) as file:
        infos = {name: file.info(name) for name in file}
        stream_safetensors(
            path, infos, lambda name: (file.raw(name, start, start + 7) for start in range(0, infos[name].size, 7))
        )
    assert path.read_bytes() == before


def test_content_is_called_once_per_tensor_in_file_order(path):
    called = []

    def content(name):
        called.append(name)
        return ones(name)

    infos = {name: TensorInfo(dtype, (3,)) for name, dtype in [("c", "U8"), ("b", "F32"), ("d", "F64"), ("a", "F32")]}
    stream_safetensors(path, infos, content)
    assert called == list(header_of(path.read_bytes())) == ["d", "a", "b", "c"]


def test_pieces_are_never_in_memory_together(path):
    size = 2**18

    def content(name):
        return (np.full(size, number, np.float32) for number in range(16))

    peak = peak_memory(lambda: stream_safetensors(path, {"t": TensorInfo("F32", (16, size))}, content))
    assert peak < 4 * 4 * size
    np.testing.assert_array_equal(load_safetensors(path)["t"], np.repeat(np.arange(16.0), size).reshape(16, size))


# ---------------------------------------------------------------- pieces of other files


def nothing_copied(*arguments):
    return 0


def not_between_these_files(*arguments):
    raise OSError("cross-device link")


@pytest.mark.parametrize(
    "copy_range", [None, nothing_copied, not_between_these_files], ids=["as is", "nothing copied", "error"]
)
@pytest.mark.parametrize("window", [5, 1 << 20])
def test_stored_pieces_are_copied_unchanged(tmp_path, monkeypatch, copy_range, window):
    tensors = {"a": np.arange(12.0).reshape(3, 4), "b": np.arange(7, dtype=np.int16)}
    save_safetensors(tmp_path / "source", tensors)
    monkeypatch.setattr(safetensors, "COPY_WINDOW", window)
    if copy_range is not None:
        monkeypatch.setattr(os, "copy_file_range", copy_range, raising=False)
    with SafetensorsFile(tmp_path / "source") as source:
        pieces = {"a": [Stored(source, "a", 0, 5), Stored(source, "a", 5, 12)], "b": [Stored(source, "b", 0, 7)]}
        assert [piece.nbytes for piece in pieces["a"]] == [40, 56]
        stream_safetensors(tmp_path / "copy", {name: source.info(name) for name in source}, pieces.__getitem__)
        stream_safetensors(tmp_path / "part", {"a": TensorInfo("F64", (3,))}, lambda name: [Stored(source, "a", 7, 10)])
    assert load_safetensors(tmp_path / "part")["a"].tolist() == [7, 8, 9]
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()


def test_stored_pieces_are_copied_without_copy_file_range(tmp_path, monkeypatch):
    save_safetensors(tmp_path / "source", {"a": np.arange(12.0)})
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    with SafetensorsFile(tmp_path / "source") as source:
        stream_safetensors(tmp_path / "copy", {"a": source.info("a")}, lambda name: [Stored(source, name, 0, 12)])
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()
