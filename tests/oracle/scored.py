"""Trains small vocabularies of BPE by score with the PyPI package `sentencepiece`, writes them as GGUF
files without tensors (data/*.gguf), and the hashes of the ids that the package gives the strings of
words.py (data/scored.bin); see README.md."""

import io
import pathlib
import struct

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from oracle import write_string
from words import all_strings, fnv1a

HERE = pathlib.Path(__file__).parent
USER_DEFINED = ["->", "://", "ing"]
# As Llama's was trained, and one with nothing but characters, neither bytes nor a space in front.
VOCABULARIES = {
    "scored.gguf": {"byte_fallback": True, "vocab_size": 800, "add_dummy_prefix": True},
    "scored-unknown.gguf": {"byte_fallback": False, "vocab_size": 420, "add_dummy_prefix": False},
}
UINT32, FLOAT, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5


def train(settings):
    lines = (HERE / "text.txt").read_text().split("\n")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines + all_strings()[:240]), model_writer=model, model_type="bpe",
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, character_coverage=0.985,
        user_defined_symbols=USER_DEFINED, num_threads=1, minloglevel=2, **settings)
    return model.getvalue()


def string(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def array(element, values):
    return struct.pack("<IQ", element, len(values)) + b"".join(values)


def write_gguf(path, model):
    pieces, spec = model.pieces, model.normalizer_spec
    number = lambda value: (UINT32, struct.pack("<I", value))
    values = {
        "tokenizer.ggml.model": (STRING, string("llama")),
        "tokenizer.ggml.pre": (STRING, string("default")),
        "tokenizer.ggml.tokens": (ARRAY, array(STRING, [string(p.piece) for p in pieces])),
        "tokenizer.ggml.scores": (ARRAY, array(FLOAT, [struct.pack("<f", p.score) for p in pieces])),
        "tokenizer.ggml.token_type": (ARRAY, array(INT32, [struct.pack("<i", p.type) for p in pieces])),
        "tokenizer.ggml.unknown_token_id": number(model.trainer_spec.unk_id),
        "tokenizer.ggml.bos_token_id": number(model.trainer_spec.bos_id),
        "tokenizer.ggml.eos_token_id": number(model.trainer_spec.eos_id),
        "tokenizer.ggml.add_space_prefix": (BOOL, struct.pack("<?", spec.add_dummy_prefix)),
    }
    body = b"".join(string(key) + struct.pack("<I", kind) + value for key, (kind, value) in values.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + body)


def main():
    strings = all_strings()
    with open(HERE / "data" / "scored.bin", "wb") as out:
        out.write(b"TRVB" + struct.pack("<II", 1, len(VOCABULARIES)))
        for name, settings in VOCABULARIES.items():
            raw = train(settings)
            write_gguf(HERE / "data" / name, sentencepiece_model_pb2.ModelProto.FromString(raw))
            processor = sentencepiece.SentencePieceProcessor(model_proto=raw)
            ids = [processor.encode(text) for text in strings]
            write_string(out, name)
            out.write(struct.pack(f"<I{len(ids)}Q", len(ids), *map(fnv1a, ids)))
            print(f"{name}: {processor.get_piece_size()} tokens, {len(strings)} strings, "
                  f"{sum(map(len, ids))} ids")


if __name__ == "__main__":
    main()
