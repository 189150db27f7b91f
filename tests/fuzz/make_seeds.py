"""Writes the binary seeds of the GGUF and mmproj targets: small models and vision towers that load, one for each path
through the loader.

    make_seeds.py [FOLDER]      default: corpus beside this file

The other targets' seeds are text, written by hand. Inputs that once broke a target are named regression_*.
"""

import pathlib
import struct
import sys

HIDDEN, FFN, CONTEXT = 32, 32, 64
BYTES_MAX = 8192  # tests/nightly cuts longer ones off
F32, Q4_0, Q8_0, Q4_K = (0, 4, 1), (2, 18, 32), (8, 34, 32), (12, 144, 256)  # number, bytes, elements
UINT32, INT32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
FORMATS = {UINT32: "<I", INT32: "<i", FLOAT: "<f", BOOL: "<?"}


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(kind, value):
    return text(value) if kind == STRING else struct.pack(FORMATS[kind], value)


def entry(key, kind, value):
    if not isinstance(value, list):
        return text(key) + struct.pack("<I", kind) + scalar(kind, value)
    return (text(key) + struct.pack("<IIQ", ARRAY, kind, len(value)) +
            b"".join(scalar(kind, item) for item in value))


def gguf(entries, tensors, version=3, alignment=32):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    head += b"".join(entry(*e) for e in entries)
    data = b""
    for name, shape, (number, block_bytes, block_elements) in tensors:
        elements = 1
        head += text(name) + struct.pack("<I", len(shape))
        for dimension in shape:
            head += struct.pack("<q", dimension)
            elements *= dimension
        head += struct.pack("<IQ", number, len(data))
        data += bytes(i * 37 % 251 for i in range(elements // block_elements * block_bytes))
        data += b"\0" * (-len(data) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def llama(tokens, **more):
    return [("general.architecture", STRING, "llama"), ("llama.block_count", UINT32, 1),
            ("llama.embedding_length", UINT32, HIDDEN), ("llama.feed_forward_length", UINT32, FFN),
            ("llama.context_length", UINT32, CONTEXT), ("llama.attention.head_count", UINT32, 2),
            ("llama.attention.head_count_kv", UINT32, 1),
            ("llama.attention.layer_norm_rms_epsilon", FLOAT, 1e-5),
            ("tokenizer.ggml.tokens", STRING, tokens)] + list(more.values())


def weights(tokens, embedding=Q4_0):
    matrix = lambda name, rows, cols: (name + ".weight", [cols, rows], Q4_0)
    norm = lambda name: (name + ".weight", [HIDDEN], F32)
    return [("token_embd.weight", [HIDDEN, len(tokens)], embedding), norm("output_norm"), norm("blk.0.attn_norm"),
            norm("blk.0.ffn_norm"), matrix("blk.0.attn_q", HIDDEN, HIDDEN), matrix("blk.0.attn_k", 16, HIDDEN),
            matrix("blk.0.attn_v", 16, HIDDEN), matrix("blk.0.attn_output", HIDDEN, HIDDEN),
            matrix("blk.0.ffn_gate", FFN, HIDDEN), matrix("blk.0.ffn_up", FFN, HIDDEN),
            matrix("blk.0.ffn_down", HIDDEN, FFN)]


TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
            " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def byte_level():
    tokens = ["<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ", "Ċ", "aab"]
    return tokens, llama(
        tokens, model=("tokenizer.ggml.model", STRING, "gpt2"), pre=("tokenizer.ggml.pre", STRING, "smollm"),
        types=("tokenizer.ggml.token_type", INT32, [3, 3, 1, 1, 1, 1, 1, 1]),
        merges=("tokenizer.ggml.merges", STRING, ["a b", "a ab"]),
        bos=("tokenizer.ggml.bos_token_id", UINT32, 0), eos=("tokenizer.ggml.eos_token_id", UINT32, 1),
        template=("tokenizer.chat_template", STRING, TEMPLATE))


def scored():
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab", "<tool>"]
    return tokens, llama(
        tokens, model=("tokenizer.ggml.model", STRING, "llama"),
        types=("tokenizer.ggml.token_type", INT32, [2, 3, 3, 1, 1, 1, 1, 1, 4]),
        scores=("tokenizer.ggml.scores", FLOAT, [float(-i) for i in range(len(tokens))]),
        bos=("tokenizer.ggml.bos_token_id", UINT32, 1), eos=("tokenizer.ggml.eos_token_id", UINT32, 2),
        unknown=("tokenizer.ggml.unknown_token_id", UINT32, 0),
        add_bos=("tokenizer.ggml.add_bos_token", BOOL, True), space=("tokenizer.ggml.add_space_prefix", BOOL, True))


def seeds():
    tokens, entries = byte_level()
    yield "byte_level", gguf(entries, weights(tokens))
    yield "version2", gguf(entries, weights(tokens, Q8_0), version=2)
    yarn = [("llama.rope.scaling.type", STRING, "yarn"), ("llama.rope.scaling.factor", FLOAT, 4.0),
            ("llama.rope.scaling.original_context_length", UINT32, 16), ("llama.rope.freq_base", FLOAT, 5e5)]
    yield "yarn", gguf(entries + yarn, weights(tokens))
    tokens, entries = scored()
    yield "scored", gguf(entries, weights(tokens))
    factors = ("rope_freqs.weight", [8], F32)
    yield "rope_factors", gguf(entries, weights(tokens) + [factors])
    split = [("split.no", UINT32, 0), ("split.count", UINT32, 2), ("split.tensors.count", INT32, 1)]
    yield "split", gguf([("general.alignment", UINT32, 64)] + split, [("t", [256, 1], Q4_K)], alignment=64)


def tower(kind, learned, frames, projector):
    """A vision tower of one layer: slices of 8 x 8 pixels in patches of 2 x 2."""
    vision = lambda key, value: ("clip.vision." + key, FLOAT if isinstance(value, (float, list)) else UINT32, value)
    entries = [("general.architecture", STRING, "clip"), ("clip.projector_type", STRING, kind),
               ("clip.use_gelu", BOOL, kind == "idefics3"), vision("image_size", 8), vision("patch_size", 2),
               vision("embedding_length", 8), vision("feed_forward_length", 16), vision("block_count", 1),
               vision("attention.head_count", 2), vision("attention.layer_norm_epsilon", 1e-6),
               vision("projector.scale_factor", 2), vision("preproc_image_size", 16),
               vision("image_mean", [0.5] * 3), vision("image_std", [0.5] * 3)]
    tensors = [("v.patch_embd.weight" + frame, [2, 2, 3, 8], F32) for frame in frames]
    linear = lambda name, inputs, outputs: [(name + ".weight", [inputs, outputs], F32), (name + ".bias", [outputs], F32)]
    if learned:
        tensors.append(("v.position_embd.weight", [8, learned], F32))
    if learned == 17:
        tensors.append(("v.class_embd", [8], F32))
    for norm in ("v.post_ln", "v.blk.0.ln1", "v.blk.0.ln2"):
        tensors += [(norm + ".weight", [8], F32), (norm + ".bias", [8], F32)]
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        tensors += linear("v.blk.0." + name, 8, 8)
    tensors += linear("v.blk.0.ffn_up", 8, 16) + linear("v.blk.0.ffn_down", 16, 8)
    for name, inputs, outputs in projector:
        tensors += linear(name, inputs, outputs)
    return gguf(entries, tensors)


def towers():
    yield "idefics3", tower("idefics3", 16, [""], [("mm.model.fc", 32, 4)])
    yield "llava", tower("mlp", 17, [""], [("mm.0", 8, 4), ("mm.2", 4, 4)])
    yield "qwen2vl", tower("qwen2vl_merger", 0, ["", ".1"], [("mm.0", 32, 8), ("mm.2", 8, 4)])


def main():
    root = pathlib.Path(sys.argv[1]) if sys.argv[1:] else pathlib.Path(__file__).parent / "corpus"
    for target, inputs in (("gguf", seeds()), ("mmproj", towers())):
        (root / target).mkdir(parents=True, exist_ok=True)
        for name, data in inputs:
            assert len(data) <= BYTES_MAX, f"{name} has {len(data)} bytes"
            (root / target / name).write_bytes(data)


if __name__ == "__main__":
    main()
