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

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..')
BIN = os.path.join(ROOT, 'build', 'release', 'bin')


def binary(name):
    return os.path.join(BIN, name)


def bandwidth(rounds):
    for backend in ('posix', 'tcp'):
        out = subprocess.run([binary('transfer_bench'), '--rounds', str(rounds), '--backend', backend],
                             capture_output=True, text=True)
        if out.returncode != 0:
            sys.exit(f'transfer_bench failed: {out.stderr.strip()[-500:]}')
        print(f'{backend}: {out.stdout.strip()}')


def start(processes, log, name, *arguments):
    processes.append(subprocess.Popen([binary(name), *arguments], stdout=log, stderr=log))


def field(text, event, request, name):
    line = re.search(rf'{event} .*request_id={request} .*', text).group(0)
    return int(re.search(rf'{name}=(\d+)', line).group(1))


def requests(model, router, tokens, count, numerics, logs):
    processes = []
    try:
        with open(logs, 'w') as log:
            for role, port in (('prefill', router + 1), ('decode', router + 2)):
                start(processes, log, f'trivium-{role}', '--listen', f'127.0.0.1:{port}', '--model', model,
                      '--threads', '1', '--numerics', numerics)
            start(processes, log, 'trivium-router', '--listen', f'127.0.0.1:{router}', '--model', model,
                  '--worker', f'prefill=127.0.0.1:{router + 1}', '--worker', f'decode=127.0.0.1:{router + 2}')
        client = [binary('trivium'), 'wait-ready', '--router', f'127.0.0.1:{router}', '--timeout-s', '60']
        subprocess.run(client, check=True, stdout=subprocess.DEVNULL)
        answers = []
        for _ in range(count):
            ids = ','.join(str(random.randrange(100, 40000)) for _ in range(tokens))
            out = subprocess.run([binary('trivium'), 'generate', '--router', f'127.0.0.1:{router}', '--tokens', ids,
                                  '--max-tokens', '8', '--ignore-eos', '--json', '--quiet'],
                                 check=True, capture_output=True, text=True)
            answers.append(json.loads(out.stdout))
        return answers
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


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
