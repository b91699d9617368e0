"""Writes GGUF files by the specification, for the tests of their reader."""

import struct

import numpy as np

CODES = {"F32": 0, "F16": 1, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
NUMBERS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "?": 7, "u8": 10, "i8": 11, "f8": 12}


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(content):
    """The type and the bytes of a metadata value; integers are written as uint32, floats as float32."""
    if isinstance(content, str | bytes):
        return struct.pack("<I", 8) + text(content)
    if isinstance(content, list):
        return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(map(text, content))
    if isinstance(content, np.ndarray):
        return struct.pack("<IIQ", 9, NUMBERS[content.dtype.str[1:].replace("b1", "?")], len(content)) + content.tobytes()
    kind = "?" if isinstance(content, bool) else "u4" if isinstance(content, int) else "f4"
    kind = content.dtype.str[1:] if isinstance(content, np.generic) else kind
    return struct.pack("<I", NUMBERS[kind]) + np.dtype(kind).type(content).tobytes()


def stored(array, kind):
    """The bytes of a float32 array; blocks are quantized as llama.cpp does."""
    array = np.ascontiguousarray(array, np.float32)
    if kind == "F32":
        return array.tobytes()
    if kind == "F16":
        return array.astype("<f2").tobytes()
    if kind == "BF16":
        return (array.view("<u4") >> 16).astype("<u2").tobytes()
    blocks = array.reshape(-1, 32)
    if kind == "Q8_0":
        d = (abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
        q = np.rint(blocks / np.where(d, d, 1).astype(np.float32)).clip(-127, 127).astype("i1")
        return b"".join(a.tobytes() + b.tobytes() for a, b in zip(d, q, strict=True))
    m = blocks.min(1, keepdims=True).astype("<f2")
    d = ((blocks.max(1, keepdims=True) - m) / 15).astype("<f2")
    q = np.rint((blocks - m.astype(np.float32)) / np.where(d, d, 1).astype(np.float32)).clip(0, 15).astype("u1")
    halves = q[:, :16] | q[:, 16:] << 4
    return b"".join(a.tobytes() + b.tobytes() + c.tobytes() for a, b, c in zip(d, m, halves, strict=True))


def gguf_bytes(metadata, tensors, *, version=3, alignment=32):
    """A file of metadata by key, and of tensors (array, type) by name."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(content) for key, content in metadata.items())
    data = b""
    for name, (array, kind) in tensors.items():
        head += text(name) + struct.pack(f"<I{array.ndim}Q", array.ndim, *array.shape[::-1])
        head += struct.pack("<IQ", CODES[kind], len(data))
        data += padded(stored(array, kind), alignment)
    return padded(head, alignment) + data


def padded(data, alignment):
    return data + bytes(-len(data) % alignment)
