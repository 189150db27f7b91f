"""Measures OpenVINO GenAI (PyPI openvino-genai) at prefill and decode; prints one JSON object.

    python peer_openvino.py MODEL.gguf --threads 2 --prompt 512 --output 64 --sequences 1,16

Prefill: the time until one token of a prompt of random tokens, prefix caching off. Decode: S sequences with 128 tokens
of context; the time of `output` tokens more than one. Best of --repeats.
"""
import json
import random
import time

import numpy as np
import openvino as ov
import openvino_genai as genai

import peer_options


def load(args):
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = 8192
    scheduler.cache_size = 1
    return genai.LLMPipeline(args.model, 'CPU', scheduler_config=scheduler, INFERENCE_NUM_THREADS=args.threads)


def seconds(pipe, prompts, prompt_tokens, output):
    ids = np.array([[random.randrange(100, 40000) for _ in range(prompt_tokens)] for _ in range(prompts)], dtype=np.int64)
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = output
    config.ignore_eos, config.do_sample = True, False
    inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    start = time.perf_counter()
    result = pipe.generate(inputs, config)
    elapsed = time.perf_counter() - start
    if any(len(tokens) != output for tokens in result.tokens):
        raise RuntimeError(f'{[len(t) for t in result.tokens]} tokens came, {output} were asked for')
    return elapsed


def main():
    args = peer_options.parse()
    random.seed(1)
    pipe = load(args)
    seconds(pipe, 1, args.prompt, 1)  # warms up
    prefill = max(args.prompt / seconds(pipe, 1, args.prompt, 1) for _ in range(args.repeats))
    decode = {}
    for count in args.sequences.split(','):
        s = int(count)
        first = min(seconds(pipe, s, 128, 1) for _ in range(args.repeats))
        all_tokens = min(seconds(pipe, s, 128, 1 + args.output) for _ in range(args.repeats))
        decode[count] = s * args.output / (all_tokens - first)
    print(json.dumps({'engine': 'OpenVINO GenAI', 'version': genai.__version__, 'threads': args.threads,
                      'prefill_tokens_per_s': prefill, 'decode_tokens_per_s': decode}))


if __name__ == '__main__':
    main()
