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


def q5_0(raw, count):
    block = blocks(raw, count, 22)
    bits = np.ascontiguousarray(block[:, 2:6]).view("<u4") >> np.arange(32, dtype=np.uint32) & 1
    return half(block, 0) * (nibbles(block, 6) + 16 * bits.astype(np.float32) - 16)


def super_blocks(raw, count, size):
    return np.ascontiguousarray(raw[:count // 256 * size]).reshape(-1, size)


def q4_k(raw, count):
    """Eight blocks of 32, each with a scale and a minimum of six bits."""
    block = super_blocks(raw, count, 144)
    packed = block[:, 4:16]
    low, high, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, rest & 15 | low >> 6 << 4], axis=1).astype(np.float32)
    minima = np.concatenate([high & 63, rest >> 4 | high >> 6 << 4], axis=1).astype(np.float32)
    quants = block[:, 16:].reshape(-1, 4, 1, 32)
    quants = np.concatenate([quants & 15, quants >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    return (half(block, 0) * scales)[..., None] * quants - (half(block, 2) * minima)[..., None]


def q6_k(raw, count):
    """Sixteen blocks of 16, each with a scale of eight bits; of an element, four bits lie in one place and two in
    another."""
    block = super_blocks(raw, count, 210)
    low = block[:, :128].reshape(-1, 2, 1, 2, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = block[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    quants = (low | high << 4).astype(np.float32).reshape(-1, 16, 16) - 32
    scales = np.ascontiguousarray(block[:, 192:208]).view(np.int8).astype(np.float32)
    return (half(block, 208) * scales)[..., None] * quants


DEQUANTISE = {0: f32, 1: f16, 2: q4_0, 3: q4_1, 6: q5_0, 8: q8_0, 12: q4_k, 14: q6_k, 30: bf16}
