"""Writes a tiny random model of each family (data/*.gguf) and the oracle's logits of it (data/families.bin);
see README.md. The files are laid out and named as llama.cpp's converters do it."""

import pathlib
import struct

import numpy as np

from bpe import byte_symbols
from forward import Model
from gguf_file import GgufFile
from oracle import write_ids, write_string

HERE = pathlib.Path(__file__).parent
HIDDEN, HEADS, KV_HEADS, FFN, CONTEXT, VOCAB = 32, 4, 2, 48, 512, 288
TOKENS, EVERY = 56, 4  # of the text; positions whose logits are kept
EXPERTS = {"expert_count": 8, "expert_used_count": 2}
# What a family's file has beside the sizes above: layers, head size, metadata, and kinds of tensors.
FAMILIES = {
    "qwen2": (3, 8, {"rope.freq_base": 1e6}, {"bias"}),
    "qwen3": (3, 16, {"rope.freq_base": 1e6}, {"qk_norm"}),
    "gemma3": (7, 16, {"rope.freq_base": 1e6, "attention.sliding_window": 10, "rope.scaling.type": "linear",
                       "rope.scaling.factor": 8.0}, {"qk_norm", "post_norms", "tied"}),
    "mixtral": (2, 8, {"rope.freq_base": 1e6, "rope.dimension_count": 8, **EXPERTS}, {"experts"}),
    "qwen2moe": (2, 8, {"rope.freq_base": 1e6, **EXPERTS, "expert_used_count": 3,
                        "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48},
                 {"bias", "experts", "shared"}),
    "qwen3moe": (2, 16, {"rope.freq_base": 1e6, **EXPERTS, "expert_feed_forward_length": 32},
                 {"qk_norm", "experts"}),
}
F32, F16 = 0, 1


def string(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(x):
    """A metadata value with its type in front."""
    if isinstance(x, bool):
        return struct.pack("<I?", 7, x)
    if isinstance(x, int):
        return struct.pack("<II", 4, x)
    if isinstance(x, float):
        return struct.pack("<If", 6, x)
    if isinstance(x, str):
        return struct.pack("<I", 8) + string(x)
    kind = {str: 8, float: 6, int: 5}[type(x[0])]
    pack = {8: string, 6: lambda v: struct.pack("<f", v), 5: lambda v: struct.pack("<i", v)}[kind]
    return struct.pack("<IIQ", 9, kind, len(x)) + b"".join(map(pack, x))


def byte_level_tokens():
    symbols = byte_symbols()
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(symbols[b] for b in range(256))]
    pairs = [(a, b) for a in "aeiou" for b in "nrst"][:VOCAB - len(tokens)]
    tokens += [a + b for a, b in pairs]
    pad = [f"[{i}]" for i in range(VOCAB - len(tokens))]
    kinds = [3] * 3 + [1] * (len(tokens) - 3) + [5] * len(pad)
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": tokens + pad,
            "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairs],
            "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": False}


def scored_tokens():
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz"][:VOCAB - len(tokens)]
    kinds = [2, 3, 3] + [6] * 256 + [1] * len(letters)
    pad = [f"[{i}]" for i in range(VOCAB - len(tokens) - len(letters))]
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": tokens + letters + pad, "tokenizer.ggml.scores": [0.0] * VOCAB,
            "tokenizer.ggml.token_type": kinds + [5] * len(pad), "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_space_prefix": False}


class Tensors:
    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.all = {}

    def matrix(self, name, *shape, size=1.0):
        """Slowest dimension first; rows of length `size` on average."""
        sigma = size / np.sqrt(shape[-1])
        self.all[name] = self.random.normal(0, sigma, shape).astype(np.float16)

    def vector(self, name, width, mean, sigma):
        self.all[name] = self.random.normal(mean, sigma, width).astype(np.float32)

    def norm(self, name, width):
        self.vector(name, width, 1.0, 0.2)


def add_layer(t, layer, head_dim, metadata, kinds):
    name = lambda part: f"blk.{layer}.{part}"
    widths = {"q": HEADS * head_dim, "k": KV_HEADS * head_dim, "v": KV_HEADS * head_dim}
    t.norm(name("attn_norm.weight"), HIDDEN)
    for part, width in widths.items():
        t.matrix(name(f"attn_{part}.weight"), width, HIDDEN, size=1.5)
        if "bias" in kinds:
            t.vector(name(f"attn_{part}.bias"), width, 0.0, 0.5)
    for part in "qk" if "qk_norm" in kinds else "":
        t.vector(name(f"attn_{part}_norm.weight"), head_dim, 1.3, 0.2)
    t.matrix(name("attn_output.weight"), HIDDEN, widths["q"])
    t.norm(name("ffn_norm.weight"), HIDDEN)
    if "post_norms" in kinds:
        t.norm(name("post_attention_norm.weight"), HIDDEN)
        t.norm(name("post_ffw_norm.weight"), HIDDEN)
    if "experts" not in kinds:
        return add_ffn(t, name, "", (), FFN)
    count = metadata["expert_count"]
    t.matrix(name("ffn_gate_inp.weight"), count, HIDDEN, size=2.0)
    t.all[name("ffn_gate_inp.weight")] = t.all[name("ffn_gate_inp.weight")].astype(np.float32)
    add_ffn(t, name, "_exps", (count,), metadata.get("expert_feed_forward_length", FFN))
    if "shared" in kinds:
        t.vector(name("ffn_gate_inp_shexp.weight"), HIDDEN, 0.0, 0.3)
        add_ffn(t, name, "_shexp", (), metadata["expert_shared_feed_forward_length"])


def add_ffn(t, name, suffix, experts, width):
    t.matrix(name(f"ffn_gate{suffix}.weight"), *experts, width, HIDDEN, size=1.5)
    t.matrix(name(f"ffn_up{suffix}.weight"), *experts, width, HIDDEN, size=1.5)
    t.matrix(name(f"ffn_down{suffix}.weight"), *experts, HIDDEN, width, size=1.5)


def write_gguf(path, metadata, tensors):
    keys = b"".join(string(key) + value(x) for key, x in metadata.items())
    infos, data = b"", b""
    for name, array in tensors.items():
        shape = array.shape[::-1]
        infos += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += struct.pack("<IQ", F16 if array.dtype == np.float16 else F32, len(data))
        data += array.tobytes()
        data += b"\0" * (-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + keys + infos
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)


def write_model(family, seed):
    layers, head_dim, special, kinds = FAMILIES[family]
    architecture = "llama" if family == "mixtral" else family
    sizes = {"block_count": layers, "context_length": CONTEXT, "embedding_length": HIDDEN,
             "feed_forward_length": FFN, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
             "attention.key_length": head_dim, "attention.value_length": head_dim,
             "attention.layer_norm_rms_epsilon": 1e-6, **special}
    metadata = {"general.architecture": architecture, "general.name": f"tiny random {family}",
                **{f"{architecture}.{key}": x for key, x in sizes.items()},
                **(scored_tokens() if architecture in ("llama", "gemma3") else byte_level_tokens())}
    t = Tensors(seed)
    t.matrix("token_embd.weight", VOCAB, HIDDEN, size=4.0)
    for layer in range(layers):
        add_layer(t, layer, head_dim, sizes, kinds)
    t.norm("output_norm.weight", HIDDEN)
    if "tied" not in kinds:
        t.matrix("output.weight", VOCAB, HIDDEN, size=4.0)
    path = HERE / "data" / f"{family}.gguf"
    write_gguf(path, metadata, t.all)
    return path


def main():
    with open(HERE / "data" / "families.bin", "wb") as out:
        out.write(b"TRVM" + struct.pack("<II", 1, len(FAMILIES)))
        for seed, family in enumerate(FAMILIES):
            path = write_model(family, seed)
            model = Model(GgufFile(path))
            ids = np.random.default_rng(100 + seed).integers(3, VOCAB, TOKENS)
            logits = model.logits(model.forward(ids, []))[EVERY - 1::EVERY]
            write_string(out, path.name)
            write_ids(out, ids)
            out.write(struct.pack("<II", EVERY, VOCAB) + logits.astype("<f4").tobytes())
            print(f"{path.name}: {path.stat().st_size} bytes, logits {logits.std():.2f}, best {logits.argmax(axis=1)}")


if __name__ == "__main__":
    main()
