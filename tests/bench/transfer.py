"""KV transfer: between two idle or computing processes beside ucx_perftest, and inside a real request.

The second table comes from a cluster of real processes: a prompt of 512 random tokens at a time, each
worker with one thread. Times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""
import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile

from cluster import BIN, Cluster


def bandwidth(rounds):
    for backend in ('posix', 'tcp'):
        out = subprocess.run([os.path.join(BIN, 'transfer_bench'), '--rounds', str(rounds), '--backend', backend],
                             capture_output=True, text=True)
        if out.returncode != 0:
            sys.exit(f'transfer_bench failed: {out.stderr.strip()[-500:]}')
        print(f'{backend}: {out.stdout.strip()}')


def field(text, event, request, name):
    line = re.search(rf'{event} .*request_id={request} .*', text).group(0)
    return int(re.search(rf'{name}=(\d+)', line).group(1))


def requests(model, router, tokens, count, numerics, logs):
    with open(logs, 'w') as log, Cluster(model, router, log, worker=['--threads', '1', '--numerics', numerics]) as cluster:
        cluster.client('wait-ready', '--timeout-s', '60')
        answers = []
        for _ in range(count):
            ids = ','.join(str(random.randrange(100, 40000)) for _ in range(tokens))
            out = cluster.client('generate', '--tokens', ids, '--max-tokens', '8', '--ignore-eos', '--json', '--quiet')
            answers.append(json.loads(out))
        return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', required=True)
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--requests', type=int, default=9)
    parser.add_argument('--tokens', type=int, default=512)
    parser.add_argument('--router', type=int, default=7480, help='first of three ports')
    args = parser.parse_args()
    random.seed(1)
    bandwidth(args.rounds)
    with tempfile.TemporaryDirectory() as directory:
        logs = os.path.join(directory, 'log')
        answers = requests(args.model, args.router, args.tokens, args.requests, 'fast', logs)
        text = open(logs).read()
    gaps, shares = [], []
    for answer in answers:
        request = answer['request_id']
        gaps.append((field(text, 'decode_end', request, 'first_step_ns') -
                     field(text, 'prefill_end', request, 'kv_computed_ns')) / 1e6)
        shares.append(field(text, 'prefill_end', request, 'kv_bytes_acked_before_end') / answer['kv']['bytes_moved'])
    print(f'{len(answers)} requests of {args.tokens} tokens')
    print(f'last layer\'s KV computed to first decode step: median {statistics.median(gaps):.1f} ms, best {min(gaps):.1f} ms')
    print(f'KV acknowledged before prefill\'s last layer ended: median {statistics.median(shares):.0%}, worst {min(shares):.0%}')


if __name__ == '__main__':
    main()
