"""GGUF files: worked examples of every type, rejection of damaged files, and bounds on memory and time."""

import os
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_np import FormatError, NotSupportedError
from lora_np.io.gguf import GGUFFile
from tests.io.gguf_files import CODES, gguf_bytes, padded, text, value

rng = np.random.default_rng(0)
METADATA = {
    "general.architecture": "llama",
    "a.number": 7,
    "a.float": 0.5,
    "a.flag": True,
    "a.list": ["x", "é"],
    "an.array": np.array([1, -2], np.int32),
    "flags": np.array([True, False]),
    "nothing": [],
    "no numbers": np.empty(0, np.float64),
}
TENSORS = {
    "f32": (rng.normal(size=(3, 2)).astype(np.float32), "F32"),
    "f16": (rng.normal(size=(5,)).astype(np.float32), "F16"),
    "bf16": (rng.normal(size=(2, 2, 2)).astype(np.float32), "BF16"),
    "q8": (rng.normal(size=(3, 64)).astype(np.float32), "Q8_0"),
    "q4": (rng.normal(size=(2, 32)).astype(np.float32), "Q4_1"),
    "scalar": (np.array(2.5, np.float32), "F32"),
}
FILE = gguf_bytes(METADATA, TENSORS)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf") / "model.gguf"


def read(path, data):
    path.write_bytes(data)
    with GGUFFile(path) as file:
        return file.metadata, dict(file)


def rejection(path, data, error=FormatError):
    path.write_bytes(data)
    with pytest.raises(error) as raised:
        GGUFFile(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 1, 256])
def test_a_file_of_every_type(path, version, alignment):
    extra = {} if alignment == 32 else {"general.alignment": alignment}
    metadata, arrays = read(path, gguf_bytes(METADATA | extra, TENSORS, version=version, alignment=alignment))
    assert list(metadata) == [*METADATA, *extra]
    for key, expected in METADATA.items():
        assert type(metadata[key]) is type(expected)
        np.testing.assert_array_equal(metadata[key], expected)
    tolerances = {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2, "Q4_1": 0.25}
    for name, (expected, kind) in TENSORS.items():
        assert arrays[name].dtype == np.float32
        assert arrays[name].shape == expected.shape
        np.testing.assert_allclose(arrays[name], expected, rtol=0, atol=tolerances[kind])


@pytest.mark.parametrize("kind", ["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8"])
def test_every_type_of_number(path, kind):
    number = np.dtype(kind).type(-3 if kind[1] in "if" else 200)
    metadata, _ = read(path, gguf_bytes({"one": number, "many": np.array([number, 1], kind)}, {}))
    assert metadata["one"] == number
    assert isinstance(metadata["one"], float if kind[1] == "f" else int)
    assert metadata["many"].dtype == kind
    assert metadata["many"].tolist() == [number, 1]


def raw_file(code, shape, data):
    """A file of one tensor, given its bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t")
    head += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], code, 0)
    return padded(head, 32) + data


def test_q8_0_by_hand(path):
    quants = np.arange(-16, 16, dtype=np.int8)
    block = np.float16(0.5).tobytes() + quants.tobytes()
    other = np.float16(-2).tobytes() + bytes(31) + b"\x80"  # the last is -128
    _, arrays = read(path, raw_file(8, (2, 32), block + other))
    np.testing.assert_array_equal(arrays["t"], [quants * 0.5, [0.0] * 31 + [256.0]])


def test_q4_1_by_hand(path):
    low, high = np.arange(16), np.arange(16)[::-1]
    block = np.float16(0.25).tobytes() + np.float16(-1).tobytes() + (low | high << 4).astype(np.uint8).tobytes()
    _, arrays = read(path, raw_file(3, (32,), block))
    np.testing.assert_array_equal(arrays["t"], np.concatenate([low, high]) * 0.25 - 1)


def test_many_blocks_are_decoded_in_pieces(path):
    q = rng.integers(-127, 128, (5000, 32)).astype(np.int8)
    d = rng.normal(size=(5000, 1)).astype(np.float16)
    data = np.concatenate([d.view(np.uint8), q.view(np.uint8)], axis=1).tobytes()
    _, arrays = read(path, raw_file(8, (5000, 32), data))
    np.testing.assert_array_equal(arrays["t"], q * d.astype(np.float32))


def test_an_infinite_scale_is_no_warning(path):
    block = np.float16(np.inf).tobytes() + bytes(31) + b"\1"
    _, arrays = read(path, raw_file(8, (32,), block))
    assert np.isnan(arrays["t"][:31]).all()
    assert arrays["t"][31] == np.inf


def test_a_file_is_a_mapping(path):
    path.write_bytes(FILE)
    with GGUFFile(path) as file:
        assert list(file) == list(TENSORS)
        assert len(file) == 6
        assert "q4" in file
        assert "b" not in file
        assert repr(file) == f"GGUFFile({str(path)!r}, 6 tensors)"
        info = file.info("q4")
        assert (info.storage.name, info.shape, info.blocks, info.nbytes) == ("Q4_1", (2, 32), 2, 40)
        assert file.raw("bf16").dtype == np.uint16
        assert file.raw("q8").shape == (6, 34)
        f32 = file["f32"]
    assert not f32.flags.writeable
    np.testing.assert_array_equal(f32, TENSORS["f32"][0])  # valid after close


def test_values_are_decoded_one_tensor_at_a_time(path):
    path.write_bytes(raw_file(8, (1 << 15, 32), bytes(34 << 15)))
    tracemalloc.start()
    with GGUFFile(path) as file:
        file["t"]
        file["t"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * 4 * 32 * (1 << 15)


# ---------------------------------------------------------------- files that the reader rejects

HEAD = b"GGUF" + struct.pack("<I", 3)
ONE = text("k")


def entry(data, tensors=0):
    return HEAD + struct.pack("<QQ", tensors, 1) + data


def tensor(*, name="t", shape=(1,), code=0, offset=0, data=bytes(4)):
    head = HEAD + struct.pack("<QQ", 1, 0) + text(name)
    return padded(head + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], code, offset), 32) + data


def two(second):
    head = HEAD + struct.pack("<QQ", 2, 0)
    for name, offset in zip("ab", (0, second), strict=True):
        head += text(name) + struct.pack("<IQIQ", 1, 2, 0, offset)
    return padded(head, 32) + bytes(64)


BIG = 2**64 - 1
REJECTED = {
    "nothing": (b"", "the file is empty"),
    "another file": (b"PK\3\4" + bytes(40), "must begin with b'GGUF', got b'PK"),
    "half the magic": (b"GG", "must begin with"),
    "no version": (b"GGUF", "version: takes 4 bytes"),
    "no counts": (HEAD, "number of tensors: takes 8 bytes from byte 8, but the file ends at byte 8"),
    "too many entries": (HEAD + struct.pack("<QQ", 0, BIG), "metadata entry 0: takes 8 bytes"),
    "too many tensors": (HEAD + struct.pack("<QQ", BIG, 0), "tensor 0: takes 8 bytes"),
    "a key beyond the file": (entry(struct.pack("<Q", BIG)), f"metadata entry 0: takes {BIG:,} bytes"),
    "a key that is not UTF-8": (entry(text(b"\xff")), "metadata entry 0: not valid UTF-8"),
    "a key without a value": (entry(ONE), "metadata 'k': takes 4 bytes"),
    "an unknown type": (entry(ONE + struct.pack("<I", 13)), "metadata 'k': the type of a value must be 0 to 12, got 13"),
    "half a number": (entry(ONE + struct.pack("<IH", 4, 0)), "metadata 'k': takes 4 bytes"),
    "another bool": (entry(ONE + struct.pack("<IB", 7, 2)), "metadata 'k': a bool must be stored as 0 or 1"),
    "another bool in a list": (entry(ONE + struct.pack("<IIQ", 9, 7, 2) + b"\1\2"), "a bool must be stored as 0 or 1"),
    "a text beyond the file": (entry(ONE + struct.pack("<IQ", 8, BIG)), f"metadata 'k': takes {BIG:,} bytes"),
    "a text that is not UTF-8": (entry(ONE + value(b"\xc3")), "metadata 'k': not valid UTF-8"),
    "a list beyond the file": (entry(ONE + struct.pack("<IIQ", 9, 12, BIG)), "metadata 'k': takes"),
    "texts beyond the file": (entry(ONE + struct.pack("<IIQ", 9, 8, BIG)), "metadata 'k': takes 8 bytes"),
    "a list of lists": (entry(ONE + struct.pack("<IIQ", 9, 9, 1)), "elements must be a number, bool or string, got 9"),
    "a key twice": (
        HEAD + struct.pack("<QQ", 0, 2) + 2 * (ONE + value(1)),
        "metadata 'k': occurs twice",
    ),
    "alignment 0": (gguf_bytes({"general.alignment": 0}, {}), "must be a power of two, got 0"),
    "alignment 24": (gguf_bytes({"general.alignment": 24}, {}), "must be a power of two, got 24"),
    "alignment as text": (gguf_bytes({"general.alignment": "32"}, {}), "must be a power of two, got '32'"),
    "alignment true": (gguf_bytes({"general.alignment": True}, {}), "must be a power of two, got True"),
    "alignment of an array": (gguf_bytes({"general.alignment": np.ones(2, np.uint32)}, {}), "must be a power of two"),
    "five dimensions": (tensor(shape=(1,) * 5), "tensor 't': must have at most 4 dimensions, got 5"),
    "a size of zero": (tensor(shape=(0, 2)), "tensor 't': sizes must be positive, got (0, 2)"),
    "an unknown tensor type": (tensor(code=77), "tensor 't': unknown type 77"),
    "a removed tensor type": (tensor(code=4), "tensor 't': unknown type 4"),
    "half a block": (tensor(shape=(2, 48), code=8, data=bytes(102)), "Q8_0 needs a last axis of a multiple of 32"),
    "a scalar of blocks": (tensor(shape=(), code=3, data=bytes(20)), "Q4_1 needs a last axis of a multiple of 32"),
    "a name twice": (two(32).replace(text("b"), text("a")), "tensor 'a': occurs twice"),
    "more values than bytes": (tensor(shape=(2**40,)), "tensor 't': ends at byte 4,398,046,511,168, but the file ends at"),
    "the largest shape": (tensor(shape=(BIG,) * 4), "tensor 't': ends at byte"),
    "an offset beyond the file": (tensor(offset=BIG), "tensor 't': leaves a hole before it"),
    "a hole": (two(64), "tensor 'b': leaves a hole before it"),
    "an overlap": (two(0), "overlaps another tensor"),
    "an unaligned offset": (two(8), "tensor 'b': overlaps another tensor"),
    "bytes after the tensors": (tensor(data=bytes(33)), "the tensors end at byte 68, but the file ends at byte 97"),
    "the last value truncated": (tensor(data=bytes(3)), "tensor 't': ends at byte 68, but the file ends at byte 67"),
}


@pytest.mark.parametrize("kind", REJECTED)
def test_a_damaged_file_is_rejected(path, kind):
    data, words = REJECTED[kind]
    assert words in rejection(path, data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "got version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "got big-endian version 3"),
        (tensor(code=12), "tensor 't': the type must be one of F32, F16, Q4_1, Q8_0, BF16; got Q4_K"),
    ],
    ids=["version", "byte order", "type"],
)
def test_what_is_not_supported_is_named(path, data, words):
    assert words in rejection(path, data, NotSupportedError)


ALL_TYPES = """
    F32 F16 Q4_0 Q4_1 - - Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S
    IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 - - - TQ1_0 TQ2_0 - - - MXFP4 - - -
"""
"""The names by code of ggml.h; a dash is a code that has been removed, or not yet given."""


def test_every_type_of_tensor_is_read_or_named(path):
    for code, name in enumerate(ALL_TYPES.split()):
        if name in CODES:
            assert CODES[name] == code
        elif name == "-":
            assert f"unknown type {code}" in rejection(path, tensor(code=code))
        else:
            assert rejection(path, tensor(code=code), NotSupportedError).endswith(f"got {name}")


def test_any_power_of_two_up_to_two_gigabytes_is_an_alignment(path):
    for power in range(34):
        data = entry(text("general.alignment") + value(np.uint64(2**power)))
        if power <= 31:
            assert read(path, data)[0] == {"general.alignment": 2**power}
        else:
            assert f"must be a power of two, got {2**power}" in rejection(path, data)


def test_padding_after_the_last_tensor_is_optional(path):
    assert read(path, tensor())[1]["t"] == 0
    assert read(path, tensor(data=bytes(32)))[1]["t"] == 0
    assert read(path, gguf_bytes({"k": 1}, {}).rstrip(b"\0") + bytes(3))[0] == {"k": 1}


def test_a_missing_file_is_not_a_format_error(path):
    with pytest.raises(FileNotFoundError):
        GGUFFile(path.with_name("nowhere.gguf"))


def test_a_rejected_file_is_closed(path, monkeypatch):
    opened = []

    def noting(*arguments):
        opened.append(open(*arguments))  # noqa: SIM115  closed by what is tested
        return opened[-1]

    monkeypatch.setattr("lora_np.io._tensor_file.open", noting, raising=False)
    path.write_bytes(HEAD)
    with pytest.raises(FormatError):
        GGUFFile(path)
    assert opened[0].closed


def test_a_truncated_file_is_rejected(path):
    for length in range(len(FILE) - 28):  # the last tensor has 4 bytes and 28 of padding
        path.write_bytes(FILE[:length])
        with pytest.raises(FormatError):
            GGUFFile(path)


def test_large_counts_need_little_time_and_memory(path):
    path.write_bytes(entry(ONE + struct.pack("<IIQ", 9, 6, 2**28)))
    os.truncate(path, 2**20)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(FormatError):
        GGUFFile(path)
    assert tracemalloc.get_traced_memory()[1] < 2**16
    tracemalloc.stop()
    assert time.process_time() - start < 1


snippets = st.binary(max_size=6) | st.integers(0, 2**64 - 1).map(lambda n: struct.pack("<Q", n))


@st.composite
def damaged(draw):
    """The file with some bytes overwritten, removed or inserted, mostly in its header."""
    data = FILE
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)) | st.integers(0, 400))
        data = data[:start] + draw(snippets) + data[start + draw(st.integers(0, 8)) :]
    return data


def test_a_damaged_file_is_rejected_or_read_in_little_memory(path):
    @settings(max_examples=5 * settings().max_examples)
    @given(damaged())
    def check(data):
        errors = []

        def load():
            try:
                read(path, data)
            except (FormatError, NotSupportedError) as error:
                errors.append(str(error))

        tracemalloc.start()
        try:
            load()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2**16 + 100 * len(data)
        assert all(str(path) in error for error in errors)

    check()
