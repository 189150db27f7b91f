"""Measures answers beside long prompts on OpenVINO GenAI (PyPI openvino-genai); prints one JSON object, as mixed_bench
does.

    python peer_mixed_openvino.py MODEL.gguf --threads 1 --streams 4 --prompt 2048 --prompts 3

ContinuousBatchingPipeline with dynamic_split_fuse: chunks of prompts join the answers in steps of max_num_batched_tokens
(256 by default), which is its chunked prefill. Prefix caching off.
"""
import json
import random
import time

import numpy as np
import openvino as ov
import openvino_genai as genai

import peer_options


class Server:
    def __init__(self, args):
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching, scheduler.dynamic_split_fuse, scheduler.cache_size = False, True, 1
        self.pipe = genai.ContinuousBatchingPipeline(args.model, scheduler, 'CPU', {'INFERENCE_NUM_THREADS': args.threads})
        self.args, self.requests, self.streams, self.last, self.gaps = args, 0, [], {}, []

    def add(self, tokens, output):
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output
        config.ignore_eos, config.do_sample = True, False
        ids = np.array([[random.randrange(100, 40000) for _ in range(tokens)]], dtype=np.int64)
        self.requests += 1
        return self.pipe.add_request(self.requests, ov.Tensor(ids), config)

    def step(self):
        self.pipe.step()
        now = time.perf_counter()
        for i, stream in enumerate(self.streams):
            if not stream.can_read():
                continue
            stream.read()
            if i in self.last:
                self.gaps.append(1e3 * (now - self.last[i]))
            self.last[i] = now

    def prefill_rate(self):
        seconds = []
        for _ in range(self.args.prompts):
            begin = time.perf_counter()
            prompt = self.add(self.args.prompt, 1)
            while not prompt.can_read():
                self.step()
            seconds.append(time.perf_counter() - begin)
            prompt.read()
        return self.args.prompt * self.args.prompts / sum(seconds), seconds


def main():
    args = peer_options.parse_mixed()
    random.seed(1)
    server = Server(args)
    server.prefill_rate()  # warms up
    alone, _ = server.prefill_rate()
    server.streams = [server.add(args.context, 4096) for _ in range(args.streams)]
    while len(server.last) < args.streams:
        server.step()
    server.gaps = []
    for _ in range(args.tokens):
        server.step()
    gaps_alone, server.gaps = server.gaps, []
    mixed, first_token_s = server.prefill_rate()
    print(json.dumps({'prefill_alone': alone, 'gaps_alone_ms': gaps_alone, 'prefill_mixed': mixed,
                      'gaps_mixed_ms': server.gaps, 'first_token_s': first_token_s}))


if __name__ == '__main__':
    main()
