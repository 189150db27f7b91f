"""Measures llama.cpp (PyPI llama-cpp-python) at prefill and decode; prints one JSON object.

    python peer_llama.py MODEL.gguf --threads 2 --prompt 512 --output 64 --sequences 1,16

Prefill: one prompt of random tokens, its KV fresh each time. Decode: S sequences with 128 tokens of context,
one token each a step. Best of --repeats.
"""
import ctypes
import json
import os
import random
import time

import llama_cpp as lc

import peer_options


def fill(batch, rows):
    """rows: (token, position, sequence, wants logits)."""
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, logits) in enumerate(rows):
        batch.token[i] = token
        batch.pos[i] = position
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = sequence
        batch.logits[i] = logits


def decode(context, batch):
    if lc.llama_decode(context, batch) != 0:
        raise RuntimeError('llama_decode failed')
    lc.llama_synchronize(context)


def make_context(model, threads, tokens, sequences):
    params = lc.llama_context_default_params()
    params.n_ctx = tokens
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = sequences
    params.n_threads = params.n_threads_batch = threads
    if hasattr(params, 'kv_unified'):
        params.kv_unified = True
    return lc.llama_init_from_model(model, params)


def load(path, own_layouts):
    params = lc.llama_model_default_params()
    params.use_extra_bufts = own_layouts
    return lc.llama_model_load_from_file(path.encode(), params)


def load_model(path):
    """With weights in llama.cpp's own layouts, unless it dies of them: its AMX products do on some virtual machines."""
    child = os.fork()
    if child == 0:
        batch = lc.llama_batch_init(32, 0, 1)
        fill(batch, [(100 + p, p, 0, p == 31) for p in range(32)])
        decode(make_context(load(path, True), 1, 64, 1), batch)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status != 0 and not os.WIFSIGNALED(status):
        raise RuntimeError(f'llama.cpp fails with status {status}')
    return load(path, status == 0), status == 0


def prefill_rate(model, args, ids):
    context = make_context(model, args.threads, args.prompt + 64, 1)
    batch = lc.llama_batch_init(args.prompt, 0, 1)
    best = 0.0
    for _ in range(args.repeats + 1):  # the first warms up
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        fill(batch, [(random.choice(ids), p, 0, p == args.prompt - 1) for p in range(args.prompt)])
        start = time.perf_counter()
        decode(context, batch)
        best = max(best, args.prompt / (time.perf_counter() - start))
    lc.llama_batch_free(batch)
    lc.llama_free(context)
    return best


def decode_rate(model, args, ids, sequences):
    context_tokens = 128
    context = make_context(model, args.threads, sequences * (context_tokens + args.output * (args.repeats + 1)) + 64,
                           sequences)
    batch = lc.llama_batch_init(512, 0, 1)
    for s in range(sequences):
        fill(batch, [(random.choice(ids), p, s, False) for p in range(context_tokens)])
        decode(context, batch)
    best, position = 0.0, context_tokens
    for _ in range(args.repeats):
        start = time.perf_counter()
        for _ in range(args.output):
            fill(batch, [(random.choice(ids), position, s, True) for s in range(sequences)])
            decode(context, batch)
            position += 1
        best = max(best, sequences * args.output / (time.perf_counter() - start))
    lc.llama_batch_free(batch)
    lc.llama_free(context)
    return best


def main():
    args = peer_options.parse()
    random.seed(1)
    quiet = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    lc.llama_backend_init()
    model, own_layouts = load_model(args.model)
    ids = range(100, 40000)
    result = {'engine': 'llama.cpp', 'version': lc.__version__, 'threads': args.threads,
              'system': lc.llama_print_system_info().decode(), 'own_layouts': own_layouts,
              'prefill_tokens_per_s': prefill_rate(model, args, ids),
              'decode_tokens_per_s': {s: decode_rate(model, args, ids, int(s)) for s in args.sequences.split(',')}}
    print(json.dumps(result))


if __name__ == '__main__':
    main()
