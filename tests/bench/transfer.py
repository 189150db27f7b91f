"""KV transfer: between two idle or computing processes beside ucx_perftest, and inside a real request.

The second table comes from a cluster of real processes: a prompt of 512 random tokens at a time, each
worker with one thread. Times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""
import argparse
import json
import random
import re
import statistics
import subprocess
import sys

from cluster import BUILT, Cluster


def bandwidth(rounds):
    for backend in ('posix', 'tcp'):
        out = subprocess.run([BUILT / 'transfer_bench', '--rounds', str(rounds), '--backend', backend],
                             capture_output=True, text=True)
        if out.returncode != 0:
            sys.exit(f'transfer_bench failed: {out.stderr.strip()[-500:]}')
        print(f'{backend}: {out.stdout.strip()}')


def field(text, event, request, name):
    line = re.search(rf'{event} .*request_id={request} .*', text).group(0)
    return int(re.search(rf'{name}=(\d+)', line).group(1))


def requests(model, tokens, count):
    """The answers, and what the processes said."""
    with Cluster(model, worker=['--threads', '1']) as cluster:
        answers = []
        for _ in range(count):
            ids = ','.join(str(random.randrange(100, 40000)) for _ in range(tokens))
            out = cluster.ask('generate', '--tokens', ids, '--max-tokens', '8', '--ignore-eos', '--json', '--quiet')
            answers.append(json.loads(out))
        return answers, cluster.logs()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', required=True)
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--requests', type=int, default=9)
    parser.add_argument('--tokens', type=int, default=512)
    args = parser.parse_args()
    random.seed(1)
    bandwidth(args.rounds)
    answers, text = requests(args.model, args.tokens, args.requests)
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
