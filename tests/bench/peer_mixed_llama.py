"""Measures answers beside long prompts on llama.cpp (PyPI llama-cpp-python); prints one JSON object, as mixed_bench does.

    python peer_mixed_llama.py MODEL.gguf --threads 1 --streams 4 --prompt 2048 --prompts 3

Scheduled as llama-server does: one llama_decode a step, first the newest token of every answer, then as much of the
prompt as n_batch (2048, of n_ubatch 512) leaves room for. Called through the low-level interface, without HTTP.
"""
import ctypes
import json
import random
import time

import llama_cpp as lc

import peer_llama
import peer_options

BATCH, UBATCH = 2048, 512


class Server:
    def __init__(self, model, args):
        params = lc.llama_context_default_params()
        params.n_ctx = args.streams * (args.context + 4096) + args.prompt + 64
        params.n_batch, params.n_ubatch, params.n_seq_max = BATCH, UBATCH, args.streams + 1
        params.n_threads = params.n_threads_batch = args.threads
        if hasattr(params, 'kv_unified'):
            params.kv_unified = True
        self.context, self.batch, self.args = lc.llama_init_from_model(model, params), lc.llama_batch_init(BATCH, 0, 1), args
        self.positions, self.last, self.gaps = {}, {}, []  # of the answers that run

    def step(self, prompt=(), done=0):
        """How far the prompt is now; every answer has one token more."""
        rows = [(random.randrange(100, 40000), position, s, True) for s, position in self.positions.items()]
        count = min(len(prompt) - done, BATCH - len(rows)) if prompt else 0
        rows += [(prompt[i], i, self.args.streams, i == len(prompt) - 1) for i in range(done, done + count)]
        peer_llama.fill(self.batch, rows)
        peer_llama.decode(self.context, self.batch)
        now = time.perf_counter()
        for s in self.positions:
            self.positions[s] += 1
            self.gaps.append(1e3 * (now - self.last[s]))
            self.last[s] = now
        return done + count

    def prefill_rate(self):
        seconds = []
        for _ in range(self.args.prompts):
            prompt, done, begin = [random.randrange(100, 40000) for _ in range(self.args.prompt)], 0, time.perf_counter()
            while done < len(prompt):
                done = self.step(prompt, done)
            seconds.append(time.perf_counter() - begin)
            lc.llama_memory_seq_rm(lc.llama_get_memory(self.context), self.args.streams, -1, -1)
        return self.args.prompt * self.args.prompts / sum(seconds), seconds

    def begin_streams(self):
        for s in range(self.args.streams):
            rows = [(random.randrange(100, 40000), p, s, False) for p in range(self.args.context)]
            peer_llama.fill(self.batch, rows)
            peer_llama.decode(self.context, self.batch)
        self.positions = {s: self.args.context for s in range(self.args.streams)}
        self.last = dict.fromkeys(self.positions, time.perf_counter())
        self.step()  # the first gap is none
        self.gaps = []


def main():
    args = peer_options.parse_mixed()
    random.seed(1)
    quiet = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    lc.llama_backend_init()
    server = Server(peer_llama.load_model(args.model)[0], args)
    server.prefill_rate()  # warms up
    alone, _ = server.prefill_rate()
    server.begin_streams()
    for _ in range(args.tokens):
        server.step()
    gaps_alone, server.gaps = server.gaps, []
    mixed, first_token_s = server.prefill_rate()
    print(json.dumps({'prefill_alone': alone, 'gaps_alone_ms': gaps_alone, 'prefill_mixed': mixed,
                      'gaps_mixed_ms': server.gaps, 'first_token_s': first_token_s}))


if __name__ == '__main__':
    main()
