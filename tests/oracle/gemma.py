"""Writes data/gemma.bin: greedy answers of the real Gemma 3 270M (deploy/fetch-model gemma3-270m) in the format
of greedy.bin. Its ids come from PyPI `sentencepiece`, given the pieces and scores of the GGUF file."""

import json
import struct
import sys

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from forward import Model
from gguf_file import GgufFile
from oracle import HERE, prompt_text, write_ids, write_position, write_string

PROMPTS, GENERATED, TOP = 14, 20, 64
# Longer than the window of 512 tokens, so that layers differ in what they see.
LONG = {"name": "window", "text": {"file": "text.txt", "bytes": [0, 3000], "then": ""}}


def processor(metadata):
    proto = sentencepiece_model_pb2.ModelProto()
    columns = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    for text, score, kind in zip(*columns):
        proto.pieces.add(piece=text, score=score, type=kind)
    unknown = metadata["tokenizer.ggml.unknown_token_id"]
    proto.pieces[unknown].type = 2  # where converters write a control token
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id = unknown
    proto.trainer_spec.unk_piece = proto.pieces[unknown].piece
    proto.trainer_spec.bos_id, proto.trainer_spec.bos_piece = 2, proto.pieces[2].piece
    proto.trainer_spec.eos_id, proto.trainer_spec.eos_piece = 1, proto.pieces[1].piece
    proto.trainer_spec.pad_id, proto.trainer_spec.pad_piece = 0, proto.pieces[0].piece
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def main():
    file = GgufFile(sys.argv[1])
    words, model = processor(file.metadata), Model(file)
    prompts = [p for p in json.loads((HERE / "prompts.json").read_text()) if isinstance(p.get("text"), str)]
    prompts = [*prompts[:PROMPTS - 1], LONG]
    with open(HERE / "data" / "gemma.bin", "wb") as out:
        out.write(b"TRVG" + struct.pack("<IIII", 1, len(prompts), TOP, len(model.output)))
        for prompt in prompts:
            text = prompt_text(prompt)
            ids = [file.metadata["tokenizer.ggml.bos_token_id"], *words.encode(text)]
            write_string(out, prompt["name"])
            write_string(out, text)
            write_ids(out, ids)
            out.write(struct.pack("<I", GENERATED))
            cache, answer, rows = [], [], ids
            for _ in range(GENERATED):
                logits = model.logits(model.forward(rows, cache)[-1])
                answer.append(write_position(out, logits, False, TOP))
                rows = answer[-1:]
            print(f"{prompt['name']}: {len(ids)} tokens: {words.decode(answer)!r}", flush=True)


if __name__ == "__main__":
    main()
