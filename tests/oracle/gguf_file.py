"""Reads a GGUF v3 file: metadata as Python values, tensors as float32 arrays. Written for the oracle
alone and independently of common/model: it trusts its file."""

import struct

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


class GgufFile:
    def __init__(self, path):
        self.raw = np.memmap(path, dtype=np.uint8, mode="r")
        self.at = 0
        assert self.take(4) == b"GGUF"
        version, tensor_count, key_count = self.unpack("IQQ")
        assert version == 3
        self.metadata = {}
        for _ in range(key_count):
            key = self.string()
            self.metadata[key] = self.value(self.unpack("I")[0])
        self.tensors = {}
        for _ in range(tensor_count):
            name = self.string()
            shape = self.unpack("Q" * self.unpack("I")[0])
            self.tensors[name] = (shape, *self.unpack("IQ"))
        alignment = self.metadata.get("general.alignment", 32)
        self.data = -(-self.at // alignment) * alignment

    def take(self, size):
        self.at += size
        return self.raw[self.at - size:self.at].tobytes()

    def unpack(self, pattern):
        return struct.unpack("<" + pattern, self.take(struct.calcsize("<" + pattern)))

    def string(self):
        return self.take(self.unpack("Q")[0]).decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            element, count = self.unpack("IQ")
            return [self.value(element) for _ in range(count)]
        return self.unpack(SCALARS[kind])[0]

    def tensor(self, name):
        """float32, slowest dimension first."""
        shape, kind, offset = self.tensors[name]
        count = int(np.prod(shape))
        raw = self.raw[self.data + offset:]
        values = DEQUANTISE[kind](raw, count)
        return values.reshape(shape[::-1])


def blocks(raw, count, size):
    return np.ascontiguousarray(raw[:count // 32 * size]).reshape(-1, size)


def half(block, begin):
    return np.ascontiguousarray(block[:, begin:begin + 2]).view(np.float16).astype(np.float32)


def nibbles(block, begin):
    """The low halves of 16 bytes are the first 16 elements of a block, the high halves the rest."""
    packed = block[:, begin:begin + 16]
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def f32(raw, count):
    return np.array(raw[:count * 4]).view(np.float32)


def f16(raw, count):
    return np.array(raw[:count * 2]).view(np.float16).astype(np.float32)


def bf16(raw, count):
    return (np.array(raw[:count * 2]).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def q4_0(raw, count):
    block = blocks(raw, count, 18)
    return half(block, 0) * (nibbles(block, 2) - 8)


def q4_1(raw, count):
    block = blocks(raw, count, 20)
    return half(block, 0) * nibbles(block, 4) + half(block, 2)


def q8_0(raw, count):
    block = blocks(raw, count, 34)
    return half(block, 0) * np.ascontiguousarray(block[:, 2:]).view(np.int8).astype(np.float32)


DEQUANTISE = {0: f32, 1: f16, 2: q4_0, 3: q4_1, 8: q8_0, 30: bf16}
