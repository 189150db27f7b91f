"""Writes data/words.bin: how each pre-tokenizer cuts Unicode-heavy strings into words. The patterns are
run by the PyPI packages `regex` and `tokenizers`, which must agree; see README.md."""

import pathlib
import random
import struct

import regex
from tokenizers import Regex, pre_tokenizers

from oracle import write_string
from strings import HAND_WRITTEN, random_string

HERE = pathlib.Path(__file__).parent
SEED = 20251121
RANDOM_STRINGS = 500

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA.replace(r"\p{N}{1,3}", r"\p{N}")

EXTRA = [
    "\r", "\r\r\n", "a\rb", "a\r\nb\r\n", "x \r\n y", " \r\n\t\r\n  z", "!\r\n\r\n!", "?! \n?", "...\n\n\n  ...",
    "I'M I'Ll I'VE I'rE I'D I'T i's", "'S 'T 'RE", "x'ſ 'ſt 'ſ", "'K 'K", "\u2019s", "don'T'LL've", "'\u0130",
    "123456789 12 1 1234", "1,234,567.89", "½½½½ ²²²²", "٠١٢٣٤٥٦٧", "v1.2.3-rc4", "0x1F2e", "a1b22c333d4444",
    "\t\tif", "\t x", " \t1", "\u00a0word", "\u00a0\u00a0word", "\u3000漢字", "\u2028line", "\u0085next\u0085\u0085",
    "(word) [word] {word} \"word\" 'word' `word`", "#hash @at $dollar %percent &and *star", "a+b=c-d/e", "a\u0301b",
    "\u0301\u0301x", " \u0301x", "\u200dx", "\ufeffx", "_x __x", "\U0001f600x", "\n\n\n\nx", "\n \n \n x", "x\n\n ",
]


def rules():
    byte_level = {"add_prefix_space": False, "use_regex": True}
    split = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated")
    digits = regex.compile(r"(\p{N})")
    smollm = lambda text: [word for part in digits.split(text) for word in regex.findall(GPT2, part)]
    plain = lambda pattern: lambda text: regex.findall(pattern, text)
    return {
        "gpt-2": (split(GPT2), plain(GPT2)),
        "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split(GPT2)]), smollm),
        "llama-bpe": (split(LLAMA), plain(LLAMA)),
        "qwen2": (split(QWEN2), plain(QWEN2)),
    }


def fnv1a(values):
    """64 bits over little-endian 32-bit values."""
    result = 0xCBF29CE484222325
    for byte in struct.pack(f"<{len(values)}I", *values):
        result = (result ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return result


def all_strings():
    source = random.Random(SEED)
    return list(dict.fromkeys(
        HAND_WRITTEN + EXTRA + [random_string(source) for _ in range(RANDOM_STRINGS)]))


def main():
    strings = all_strings()
    with open(HERE / "data" / "words.bin", "wb") as out:
        out.write(b"TRVS" + struct.pack("<II", 1, len(strings)))
        for text in strings:
            write_string(out, text)
        out.write(struct.pack("<I", len(rules())))
        for name, (pre_tokenizer, by_regex) in rules().items():
            write_string(out, name)
            differ = 0
            for text in strings:
                words = [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]
                if words != by_regex(text):
                    differ += 1
                    print(f"the two oracles differ: {text!r}: {words} {by_regex(text)}")
                out.write(struct.pack("<Q", fnv1a([len(word.encode()) for word in words])))
            print(f"{name}: {len(strings)} strings, regex and tokenizers differ on {differ}")


if __name__ == "__main__":
    main()
