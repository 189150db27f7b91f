#!/usr/bin/env python3
"""Writes weights_hashes.inc: hashes of what the public gguf package reads from blocks that
weights_test.cc makes again by the same rules.

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 numpy==2.4.6
    venv/bin/python weights_golden.py > weights_hashes.inc
"""
import warnings

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

BLOCKS = 96
# The places of the float16 numbers in a block.
HALVES = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "IQ4_NL": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
# Zeros, subnormals, one, the least normal and the largest numbers, of both signs.
EXTREME_HALVES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF]
EXTREME_BYTES = [0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0, 0x55, 0xAA, 0x3F, 0xC0]


class SplitMix:
    def __init__(self, seed):
        self.state = seed

    def next(self):
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)


def make_blocks(name, extreme):
    """Random bytes; if extreme, every third block of one byte throughout, and the halves from the list."""
    random, size = SplitMix(int(Type[name])), GGML_QUANT_SIZES[Type[name]][1]
    blocks = np.zeros((BLOCKS, size), np.uint8)
    for b in range(BLOCKS):
        fill = EXTREME_BYTES[b // 3 % len(EXTREME_BYTES)]
        for i in range(size):
            byte = random.next() & 255
            blocks[b, i] = fill if extreme and b % 3 == 0 else byte
        for at in HALVES[name]:
            draw = random.next()
            half = EXTREME_HALVES[draw % len(EXTREME_HALVES)] if extreme else draw & 0xBFFF  # finite
            blocks[b, at : at + 2] = (half & 255, half >> 8)
    return blocks


def fnv(words):
    value = 0xCBF29CE484222325
    for word in words:
        value = ((value ^ int(word)) * 0x100000001B3) & ((1 << 64) - 1)
    return value


warnings.simplefilter("ignore")
print("// Made by weights_golden.py.")
for name, halves in HALVES.items():
    for extreme in (False, True):
        values = dequantize(make_blocks(name, extreme), Type[name])
        assert np.isfinite(values).all()
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).ravel()
        places = ", ".join(map(str, halves))
        print(f"{{WeightType::k{name}, {{{places}}}, {str(extreme).lower()}, {fnv(bits):#x}u}},")
