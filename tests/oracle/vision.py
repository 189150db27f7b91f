"""Records what the `transformers` implementations make of pictures: slices, multimedia tokens, prompts.

    venv/bin/pip install torch==2.15.0 torchvision==0.29.2 transformers==5.24.0 pillow==12.3.0
    venv/bin/python vision.py        # vision.bin, picture_markers.gguf

Weights are random and not stored: element i of tensor NAME is an 11-bit integer out of splitmix64(FNV-1a(NAME) + i),
so that both sides make the same ones, and float16 holds them exactly. Pillow resizes columns first, then rows; from
version 13 on it takes rows first in some sizes, which rounds otherwise.
"""

import hashlib
import pathlib
import struct

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm import modeling_smolvlm as smolvlm
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

DATA = pathlib.Path(__file__).parent / "data"
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

# kind image patch hidden heads ffn layers merge out longest_edge class sample
TOWERS = {
    "idefics3": ("idefics3", 32, 4, 24, 3, 48, 2, 2, 16, 64, 0, 1),
    "llava": ("mlp", 28, 7, 24, 3, 40, 2, 1, 20, 0, 1, 1),
    "qwen2vl": ("qwen2vl_merger", 56, 14, 32, 2, 64, 2, 2, 12, 0, 0, 1),
    "smolvlm_256m": ("idefics3", 512, 16, 768, 12, 3072, 12, 4, 576, 512, 0, 61),
}
FIELDS = "image patch hidden heads ffn layers merge out longest_edge class sample".split()
SIZES = [(37, 22), (640, 480), (333, 1000), (513, 512), (1500, 40), (16, 16), (512, 512), (90, 700), (1, 300)]


def integers(name, count):
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(name, count):
    return ((integers(name, count) >> np.uint64(53)).astype(np.float32) - 1024) / 1024


def tensor(name, *shape):
    """Rows of `inputs` elements are scaled by the power of two next below sqrt(3 / inputs)."""
    values = uniform(name, int(np.prod(shape)))
    if name.endswith(".bias") or name in ("v.class_embd", "v.position_embd.weight"):
        values = values * np.float32(0.25)
    elif len(shape) == 1:
        values = 1 + values * np.float32(0.25)
    else:
        values = values * np.float32(2.0 ** -np.floor(np.log2(np.sqrt(np.prod(shape[1:]) / 3))))
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def picture(width, height):
    y, x = np.mgrid[0:height, 0:width]
    cells = integers("picture", (height // 5 + 1) * (width // 7 + 1) * 3).reshape(height // 5 + 1, width // 7 + 1, 3)
    rgb = (cells[y // 5, x // 7] >> np.uint64(56)).astype(np.int64) + x[..., None] % 7 * 3
    return np.minimum(rgb, 255).astype(np.uint8)


def linear(names, module, where):
    names[where + ".weight"] = module.weight
    if module.bias is not None:
        names[where + ".bias"] = module.bias


def fill(names):
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(tensor(name, *parameter.shape))


def siglip_layer(names, layer, where):
    for theirs, ours in [(layer.layer_norm1, "ln1"), (layer.layer_norm2, "ln2"), (layer.self_attn.q_proj, "attn_q"),
                         (layer.self_attn.k_proj, "attn_k"), (layer.self_attn.v_proj, "attn_v"),
                         (layer.self_attn.out_proj, "attn_out"), (layer.mlp.fc1, "ffn_up"), (layer.mlp.fc2, "ffn_down")]:
        linear(names, theirs, f"{where}.{ours}")


class Smolvlm:
    def __init__(self, t):
        self.t = t
        self.processor = SmolVLMImageProcessorPil(
            size={"longest_edge": t["longest_edge"]}, max_image_size={"longest_edge": t["image"]},
            image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def tower(self):
        t = self.t
        config = SmolVLMConfig(
            vision_config={"hidden_size": t["hidden"], "intermediate_size": t["ffn"], "num_hidden_layers": t["layers"],
                           "num_attention_heads": t["heads"], "image_size": t["image"], "patch_size": t["patch"]},
            text_config={"model_type": "llama", "hidden_size": t["out"], "num_attention_heads": 1}, scale_factor=t["merge"])
        vision = smolvlm.SmolVLMVisionTransformer._from_config(config.vision_config, attn_implementation="eager")
        connector = smolvlm.SmolVLMConnector(config)
        names = {"v.position_embd.weight": vision.embeddings.position_embedding.weight}
        linear(names, vision.embeddings.patch_embedding, "v.patch_embd")
        linear(names, vision.post_layernorm, "v.post_ln")
        linear(names, connector.modality_projection.proj, "mm.model.fc")
        for i, layer in enumerate(vision.encoder.layers):
            siglip_layer(names, layer, f"v.blk.{i}")
        fill(names)
        return lambda pixels: connector(vision.eval()(pixels).last_hidden_state)

    def process(self, rgb):
        out = self.processor(images=[[Image.fromarray(rgb)]], return_row_col_info=True, return_tensors="pt")
        pixels = out["pixel_values"][0].float()
        assert out["pixel_attention_mask"].all()
        slices = self.bytes_of(pixels, [0.5] * 3, [0.5] * 3)
        return pixels, slices, int(out["rows"][0][0]), int(out["cols"][0][0])

    @staticmethod
    def bytes_of(pixels, mean, std):
        """The bytes that these pixels came from, which must give them back exactly."""
        mean, std = np.array(mean, np.float32), np.array(std, np.float32)
        values = pixels.numpy().transpose(0, 2, 3, 1)
        data = np.rint((values * std + mean) * 255).clip(0, 255).astype(np.uint8)
        rescaled = (data.astype(np.float64) * (1 / 255)).astype(np.float32)
        assert np.array_equal((rescaled - mean) / std, values)
        return data


class Llava:
    def __init__(self, t):
        self.t = t
        self.processor = CLIPImageProcessorPil(
            size={"shortest_edge": t["image"]}, crop_size={"height": t["image"], "width": t["image"]})

    def tower(self):
        t = self.t
        config = CLIPVisionConfig(
            hidden_size=t["hidden"], intermediate_size=t["ffn"], num_hidden_layers=t["layers"] + 1,
            num_attention_heads=t["heads"], image_size=t["image"], patch_size=t["patch"])
        model = CLIPVisionModel._from_config(config, attn_implementation="eager")
        clip = getattr(model, "vision_model", model)
        one, two = torch.nn.Linear(t["hidden"], t["out"]), torch.nn.Linear(t["out"], t["out"])
        names = {"v.position_embd.weight": clip.embeddings.position_embedding.weight,
                 "v.class_embd": clip.embeddings.class_embedding}
        linear(names, clip.embeddings.patch_embedding, "v.patch_embd")
        linear(names, clip.pre_layrnorm, "v.pre_ln")
        linear(names, one, "mm.0")
        linear(names, two, "mm.2")
        for i, layer in enumerate(list(clip.encoder.layers)[:t["layers"]]):
            siglip_layer(names, layer, f"v.blk.{i}")
        fill(names)

        def run(pixels):  # the last layer but one, without the class row
            hidden = model.eval()(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            return two(torch.nn.functional.gelu(one(hidden)))
        return run

    def process(self, rgb):
        pixels = self.processor(images=Image.fromarray(rgb), return_tensors="pt")["pixel_values"].float()
        return pixels, Smolvlm.bytes_of(pixels, CLIP_MEAN, CLIP_STD), 0, 0


class Qwen2vl:
    def __init__(self, t):
        self.t = t
        self.processor = Qwen2VLImageProcessorPil(patch_size=t["patch"], merge_size=t["merge"])

    def tower(self):
        t = self.t
        config = Qwen2VLVisionConfig(
            depth=t["layers"], embed_dim=t["hidden"], hidden_size=t["out"], num_heads=t["heads"],
            mlp_ratio=t["ffn"] // t["hidden"], patch_size=t["patch"], spatial_merge_size=t["merge"])
        vision = qwen.Qwen2VisionTransformerPretrainedModel._from_config(config, attn_implementation="eager")
        names, frames = {}, vision.patch_embed.proj.weight
        linear(names, vision.merger.ln_q, "v.post_ln")
        linear(names, vision.merger.mlp[0], "mm.0")
        linear(names, vision.merger.mlp[2], "mm.2")
        qkv = []
        for i, block in enumerate(vision.blocks):
            for theirs, ours in [(block.norm1, "ln1"), (block.norm2, "ln2"), (block.attn.proj, "attn_out"),
                                 (block.mlp.fc1, "ffn_up"), (block.mlp.fc2, "ffn_down")]:
                linear(names, theirs, f"v.blk.{i}.{ours}")
            qkv.append(block.attn.qkv)
        fill(names)
        with torch.no_grad():
            for frame, name in enumerate(["v.patch_embd.weight", "v.patch_embd.weight.1"]):
                frames[:, :, frame] = tensor(name, *frames[:, :, frame].shape)
            for i, joined in enumerate(qkv):
                for kind, part in (("weight", joined.weight), ("bias", joined.bias)):
                    for name, piece in zip("qkv", part.chunk(3)):
                        piece.copy_(tensor(f"v.blk.{i}.attn_{name}.{kind}", *piece.shape))
        return lambda pixels: vision.eval()(pixels, grid_thw=self.grid).pooler_output

    def process(self, rgb):
        out = self.processor(images=Image.fromarray(rgb), return_tensors="pt")
        self.grid = out["image_grid_thw"]
        _, h, w = self.grid[0].tolist()
        p, m = self.t["patch"], self.t["merge"]
        values = out["pixel_values"].float()
        whole = values.numpy().reshape(h // m, w // m, m, m, 3, 2, p, p)[:, :, :, :, :, 0]
        whole = whole.transpose(4, 0, 2, 5, 1, 3, 6).reshape(1, 3, h * p, w * p)
        return values, Smolvlm.bytes_of(torch.from_numpy(whole.copy()), CLIP_MEAN, CLIP_STD), 0, 0


MAKERS = {"idefics3": Smolvlm, "mlp": Llava, "qwen2vl_merger": Qwen2vl}


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<I", len(data)) + data


def digest(slice_):
    height, width, _ = slice_.shape
    fields = [b"trivium picture", struct.pack("<q", width), struct.pack("<q", height), slice_.tobytes()]
    return hashlib.blake2b(b"".join(struct.pack("<Q", len(f)) + f for f in fields)).digest()[:32]


def slicing():
    """What becomes of pictures of many sizes under the real models' settings."""
    real = {"idefics3": dict(image=512, patch=16, merge=4, longest_edge=2048),
            "mlp": dict(image=336, patch=14, merge=1, longest_edge=0),
            "qwen2vl_merger": dict(image=560, patch=14, merge=2, longest_edge=0)}
    out, count = b"", 0
    for kind, t in real.items():
        for width, height in SIZES:
            if kind != "idefics3" and max(width, height) > 200 * min(width, height):
                continue  # Qwen2-VL refuses it, and CLIP would make a picture of 336 x 100800
            _, slices, rows, cols = MAKERS[kind](t).process(picture(width, height))
            head = [t[f] for f in ("image", "patch", "merge", "longest_edge")] + [width, height, rows, cols, len(slices)]
            out += text(kind) + struct.pack("<9i", *head) + b"".join(map(digest, slices))
            count += 1
    return struct.pack("<I", count) + out


def towers():
    out = struct.pack("<I", len(TOWERS))
    for name, (kind, *numbers) in TOWERS.items():
        t = dict(zip(FIELDS, numbers))
        maker = MAKERS[kind](t)
        width, height = (600, 400) if t["image"] == 512 else (90, 70)
        pixels, slices, _, _ = maker.process(picture(width, height))
        with torch.no_grad():
            tokens = maker.tower()(pixels).reshape(-1).numpy()
        print(name, len(slices), "slices", tokens.size, "values, deviation", tokens.std())
        sample = tokens[::t["sample"]].astype("<f4")
        out += text(name) + text(kind) + struct.pack(f"<{len(FIELDS)}i", *numbers)
        out += struct.pack("<3I", width, height, sample.size) + sample.tobytes()
    return out


def alphabet():
    """Byte-level BPE's characters for the bytes 0 … 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in plain]
    return [chr(b if b in plain else 256 + other.index(b)) for b in range(256)]


def gguf_vocabulary(tokens, types, merges):
    strings = lambda key, values: text64(key) + struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text64, values))
    entries = [text64("general.architecture") + struct.pack("<I", 8) + text64("llama"),
               text64("tokenizer.ggml.model") + struct.pack("<I", 8) + text64("gpt2"),
               text64("tokenizer.ggml.pre") + struct.pack("<I", 8) + text64("smollm"),
               strings("tokenizer.ggml.tokens", tokens),
               text64("tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, len(types)) +
               struct.pack(f"<{len(types)}i", *types),
               strings("tokenizer.ggml.merges", merges)]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


def text64(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def prompts():
    """SmolVLM's markers in a vocabulary of bytes and some merges, as its processor and `tokenizers` make of them."""
    special = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"]
    special += [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
    merges = [("Ċ", "Ċ"), ("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("i", "n"), ("e", "r"), ("U", "s"), ("Us", "er")]
    tokens = special + alphabet()
    tokens += [a + b for a, b in merges if a + b not in tokens]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    types = [3] * len(special) + [1] * (len(tokens) - len(special))
    (DATA / "picture_markers.gguf").write_bytes(gguf_vocabulary(tokens, types, [" ".join(m) for m in merges]))
    cases = [([(0, 0)], ["<|im_start|>User:", "What is in the picture?<end_of_utterance>\nAssistant:"]),
             ([(3, 4)], ["<|im_start|>User:", "\n the colours<end_of_utterance>\n"]),
             ([(1, 2), (0, 0), (2, 1)], ["", "", " and then\n", "12 the"]), ([], ["User: none"])]
    out = struct.pack("<I", len(cases))
    for grids, pieces in cases:
        whole = pieces[0]
        for (rows, cols), piece in zip(grids, pieces[1:]):
            whole += get_image_prompt_string(rows, cols, 7, fake_token_around_image="<fake_token_around_image>",
                                             image_token="<image>", global_image_token="<global-img>") + piece
        ids = tokenizer.encode(whole).ids
        out += struct.pack("<I", len(grids)) + b"".join(struct.pack("<2i", *g) for g in grids)
        out += b"".join(map(text, pieces)) + struct.pack(f"<I{len(ids)}i", len(ids), *ids)
    return out


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(2)
    (DATA / "vision.bin").write_bytes(b"TRVW" + struct.pack("<I", 1) + prompts() + slicing() + towers())
