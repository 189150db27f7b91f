"""The oracle's tokenizer: the `smollm` rule as a regular expression (PyPI `regex`) and BPE by repeated
search for the lowest rank. `huggingface` builds the same vocabulary for the `tokenizers` package, whose
ids are what is recorded."""

import functools

import regex

PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
CONTROL = 3


def byte_symbols():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(0x100 + len(symbols) - len(printable))
    return symbols


class Bpe:
    def __init__(self, metadata):
        assert metadata["tokenizer.ggml.model"] == "gpt2"
        assert metadata["tokenizer.ggml.pre"] == "smollm"
        self.tokens = metadata["tokenizer.ggml.tokens"]
        self.merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
        kinds = metadata["tokenizer.ggml.token_type"]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.symbols = byte_symbols()
        self.control = [token for token, kind in zip(self.tokens, kinds) if kind == CONTROL]
        self.split_control = regex.compile(
            "(" + "|".join(map(regex.escape, sorted(self.control, key=len, reverse=True))) + ")")

    @functools.lru_cache(maxsize=100000)
    def word(self, text):
        parts = [self.symbols[byte] for byte in text.encode()]
        parts = [part for part in parts if part in self.ids]
        while len(parts) > 1:
            ranks = [self.ranks.get(pair, len(self.ranks)) for pair in zip(parts, parts[1:])]
            best = min(ranks)
            if best == len(self.ranks):
                break
            i = ranks.index(best)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        return [self.ids[part] for part in parts]

    def encode(self, text):
        ids = []
        for piece in regex.split(r"(\p{N})", text):
            for word in PATTERN.findall(piece):
                ids += self.word(word)
        return ids

    def encode_with_control(self, text):
        ids = []
        for part in self.split_control.split(text):
            ids += [self.ids[part]] if part in self.control else self.encode(part)
        return ids


def huggingface(bpe):
    from tokenizers import Tokenizer, models, pre_tokenizers
    tokenizer = Tokenizer(models.BPE(vocab=bpe.ids, merges=bpe.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return tokenizer
