"""Records what `tokenizers` and `sentence-transformers` make of texts, with all-MiniLM-L6-v2 and with a tiny model of
random weights that is stored beside the record.

    venv/bin/pip install torch==2.15.0 transformers==5.24.0 sentence-transformers==6.2.0
    venv/bin/python embedding.py "$(deploy/fetch-model minilm)"    # embedding.bin, tiny-bert/

The tiny model's vocabulary is the characters and the shortest pieces of the real one.
"""

import json
import pathlib
import shutil
import struct
import sys

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from words import all_strings, fnv1a

DATA = pathlib.Path(__file__).parent / "data"
PIECES = 700
TEXTS = [
    "", "a", "What is the capital of France?", "what's the CAPITAL of france", "How do I sort a list ascending?",
    "How do I sort a list descending?", "Ça coûte combien, s'il vous plaît?", "日本の首都はどこですか", "1234567890 + 42 = ?",
    "std::vector<int> v{1, 2, 3};", "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "The quick brown fox jumps over the lazy dog. " * 5, "price of the stock today " * 100, "🙂 emoji and [SEP] markers",
    "A man is eating food.", "A man is eating a piece of bread.", "Two men pushed carts through the woods.",
]


def tiny(folder, real):
    """Random weights from a fixed seed, as float16, and a tokenizer with fewer pieces."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tokenizer = json.loads((real / "tokenizer.json").read_text())
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    plain = sorted((p for p in tokenizer["model"]["vocab"] if p not in special and p.isprintable()),
                   key=lambda p: (len(p.removeprefix("##")), p))
    plain = [p for p in plain if p.isascii()]
    tokenizer["model"]["vocab"] = {p: i for i, p in enumerate(special + plain[:PIECES - len(special)])}
    for added in tokenizer["added_tokens"]:
        added["id"] = special.index(added["content"])
    tokenizer["post_processor"]["special_tokens"] = {
        t: {"id": t, "ids": [special.index(t)], "tokens": [t]} for t in ("[CLS]", "[SEP]")}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")))
    config = BertConfig(vocab_size=PIECES, hidden_size=40, num_hidden_layers=2, num_attention_heads=5,
                        intermediate_size=72, max_position_embeddings=64)
    torch.manual_seed(7)
    model = BertModel(config, add_pooling_layer=False).eval()
    for name, weight in model.named_parameters():
        spread = 0.5 if "embeddings" in name else 0.3
        weight.data = (torch.randn_like(weight) * spread + (1 if name.endswith("LayerNorm.weight") else 0)).half().float()
    save_file({n: w.data.half().contiguous() for n, w in model.named_parameters()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1, sort_keys=True))
    return model, 64


def embed(model, tokenizer, texts, tokens_max):
    """One text at a time: the mean of the last rows, of length 1."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens_max)
    for text in texts:
        ids = tokenizer.encode(text.replace("[SEP]", "[ SEP ]")).ids
        with torch.no_grad():
            rows = model(torch.tensor([ids])).last_hidden_state[0]
        yield len(ids), torch.nn.functional.normalize(rows.mean(0), dim=0).numpy()


def check_real(folder, vectors):
    """Our reading of the recipe against the package that defines it."""
    transformer = Transformer(str(folder), max_seq_length=256)
    package = SentenceTransformer(modules=[transformer, Pooling(384, pooling_mode="mean")], device="cpu")
    theirs = package.encode([t.replace("[SEP]", "[ SEP ]") for t in TEXTS], normalize_embeddings=True)
    for text, ours, other in zip(TEXTS, vectors, theirs):
        assert float(ours @ other) > 0.999999, text


def write_case(out, tokenizer, vectors):
    strings = [s.replace("[SEP]", "[ SEP ]") for s in all_strings()]
    tokenizer.no_truncation()
    tokenizer.no_padding()
    out.write(struct.pack("<I", len(strings)))
    for s in strings:
        out.write(struct.pack("<Q", fnv1a(tokenizer.encode(s).ids)))
    out.write(struct.pack("<I", len(vectors)))
    for text, (tokens, vector) in zip(TEXTS, vectors):
        data = text.encode()
        out.write(struct.pack("<I", len(data)) + data + struct.pack("<II", tokens, len(vector)) +
                  vector.astype("<f4").tobytes())


def main():
    real = pathlib.Path(sys.argv[1])
    with open(DATA / "embedding.bin", "wb") as out:
        out.write(b"TRVE" + struct.pack("<II", 1, 2))
        tokenizer = Tokenizer.from_file(str(real / "tokenizer.json"))
        model = BertModel.from_pretrained(real, add_pooling_layer=False).eval()
        vectors = list(embed(model, tokenizer, TEXTS, 256))
        check_real(real, [v for _, v in vectors])
        write_case(out, tokenizer, vectors)
        model, tokens_max = tiny(DATA / "tiny-bert", real)
        tokenizer = Tokenizer.from_file(str(DATA / "tiny-bert" / "tokenizer.json"))
        write_case(out, tokenizer, list(embed(model, tokenizer, TEXTS, tokens_max)))


if __name__ == "__main__":
    main()
