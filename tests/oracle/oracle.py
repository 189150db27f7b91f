"""Writes data/greedy.bin and data/perplexity.bin; see README.md for the recipe and the formats."""

import json
import pathlib
import struct
import sys
import time

import numpy as np

from bpe import Bpe
from forward import Model, log_softmax
from gguf_file import GgufFile

HERE = pathlib.Path(__file__).parent
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
GENERATED = 40
TOP = 256
FULL_EVERY = 113  # of all positions; each full one takes 98 KB
PERPLEXITY_TOKENS = 2048


def text_of(content):
    if isinstance(content, str):
        return content
    raw = (HERE / content["file"]).read_bytes()
    begin, end = content["bytes"]
    return raw[begin:end].decode() + content["then"]


def prompt_text(prompt):
    if "text" in prompt:
        return text_of(prompt["text"])
    turns = [(role, text_of(content)) for role, content in prompt["chat"]]
    if turns[0][0] != "system":
        turns.insert(0, ("system", DEFAULT_SYSTEM))
    body = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return body + "<|im_start|>assistant\n"


def write_string(out, text):
    raw = text.encode()
    out.write(struct.pack("<I", len(raw)) + raw)


def write_ids(out, ids):
    out.write(struct.pack("<I", len(ids)) + np.asarray(ids, "<i4").tobytes())


def write_position(out, logits, full, top=TOP):
    order = np.argsort(-logits, kind="stable")[:top]
    logprobs = log_softmax(logits)
    rest = 1 - np.exp(logprobs[order]).sum()
    margin = logits[order[0]] - logits[order[1]]
    out.write(struct.pack("<iff", order[0], margin, max(rest, 0)))
    ids = order.astype("<u2" if len(logits) <= 65536 else "<i4")
    out.write(ids.tobytes() + logprobs[order].astype("<f4").tobytes())
    out.write(struct.pack("<B", full))
    if full:
        out.write(logprobs.astype("<f2").tobytes())
    return int(order[0])


def write_greedy(model, bpe, prompts):
    position = 0
    with open(HERE / "data" / "greedy.bin", "wb") as out:
        out.write(b"TRVG" + struct.pack("<IIII", 1, len(prompts), TOP, len(bpe.tokens)))
        for prompt in prompts:
            begin = time.time()
            text = prompt_text(prompt)
            ids = bpe.encode_with_control(text)
            write_string(out, prompt["name"])
            write_string(out, text)
            write_ids(out, ids)
            out.write(struct.pack("<I", GENERATED))
            cache, answer, rows = [], [], ids
            for _ in range(GENERATED):
                logits = model.logits(model.forward(rows, cache)[-1])
                answer.append(write_position(out, logits, position % FULL_EVERY == 0))
                rows = answer[-1:]
                position += 1
            shown = "".join(bpe.tokens[i] for i in answer).replace("Ġ", " ").replace("Ċ", "\\n")
            print(f"{prompt['name']}: {len(ids)} tokens, {time.time() - begin:.1f} s: {shown}",
                  flush=True)


def write_perplexity(model, bpe):
    ids = bpe.encode((HERE / "text.txt").read_text())[:PERPLEXITY_TOKENS]
    assert len(ids) == PERPLEXITY_TOKENS
    states = model.forward(ids, [])
    nll = []
    for begin in range(0, len(ids) - 1, 256):
        end = min(begin + 256, len(ids) - 1)
        logprobs = log_softmax(model.logits(states[begin:end]))
        nll += list(-logprobs[np.arange(end - begin), ids[begin + 1:end + 1]])
    with open(HERE / "data" / "perplexity.bin", "wb") as out:
        out.write(b"TRVP" + struct.pack("<I", 1))
        write_ids(out, ids)
        out.write(np.asarray(nll, "<f4").tobytes())
    print(f"perplexity of {len(ids)} tokens: {np.exp(np.mean(nll)):.5f}", flush=True)


def main():
    file = GgufFile(sys.argv[1])
    bpe = Bpe(file.metadata)
    model = Model(file)
    (HERE / "data").mkdir(exist_ok=True)
    prompts = json.loads((HERE / "prompts.json").read_text())
    write_perplexity(model, bpe)
    write_greedy(model, bpe, prompts[:int(sys.argv[2])] if len(sys.argv) > 2 else prompts)


if __name__ == "__main__":
    main()
