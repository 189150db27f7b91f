"""Answers that run while long prompts arrive: the time between their tokens, and prompt tokens a second.

Some answers run; then long prompts of new random tokens come, one after another. Each engine is measured with the
answers alone, with the prompts alone, and with both. Rounds alternate between the engines, and the best of each counts,
by the ratio of gaps. The cluster's prefill and decode worker have one core each, and are asked over HTTP; the others
have --threads and are called in one process. A mixed worker is a decode worker that computes the prompts too.
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import threading
import time

import peer_options
from asker import Asker, tenancy, tokens_of
from cluster import BUILT, Cluster

HERE = pathlib.Path(__file__).resolve().parent
PEERS = {'llama.cpp, as its server schedules': 'peer_mixed_llama.py', 'OpenVINO GenAI, split fuse': 'peer_mixed_openvino.py'}
KEY = 'bench'


def sizes(args):
    return [f'--{name}={getattr(args, name)}' for name in ('streams', 'context', 'tokens', 'prompt', 'prompts')]


def peer(args, script):
    output = subprocess.run([sys.executable, HERE / script, args.model, f'--threads={args.threads}', *sizes(args)],
                            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return json.loads(output.splitlines()[-1])


def try_run(name, run, args):
    """What an engine measured, or None where it ended with an error: the others are measured all the same."""
    try:
        return run(args)
    except subprocess.CalledProcessError as error:
        print(f'{name}: exit status {error.returncode}, left out of this round', file=sys.stderr)


def worker(args, *flags):
    output = subprocess.run([BUILT / 'mixed_bench', '--model', args.model, f'--threads={args.threads}', *sizes(args), *flags],
                            check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def prompt(tokens):
    return [random.randrange(100, 40000) for _ in range(tokens)]


class Stream(threading.Thread):
    """An answer; when its tokens came, until `stop`."""

    def __init__(self, port, args):
        super().__init__(daemon=True)
        self.port, self.args, self.times, self.stop = port, args, [], False

    def run(self):
        asker = Asker(self.port)
        for event in asker.events(prompt(self.args.context), KEY, max_tokens=4096):
            self.times += [time.perf_counter()] * len(tokens_of(event))
            if self.stop:
                return asker.connection.close()

    def gaps_since(self, begin):
        times = self.times[:]
        return [1e3 * (b - a) for a, b in zip(times, times[1:]) if a >= begin]


def prefill_rate(asker, args):
    seconds = [asker.ask(prompt(args.prompt), KEY, max_tokens=1).first_s for _ in range(args.prompts)]
    return args.prompt * args.prompts / sum(seconds), seconds


def cluster(args):
    """Its prefill worker on the first core that this process may use, its decode worker on the last."""
    cores = sorted(os.sched_getaffinity(0))
    with Cluster(args.model, worker=['--threads', '1'], config=tenancy((KEY,)), key=KEY) as processes:
        for name, core in (('prefill-0', cores[0]), ('decode-0', cores[-1])):
            for thread in os.listdir(f'/proc/{processes.processes[name].pid}/task'):
                os.sched_setaffinity(int(thread), {core})
        asker = Asker(processes.http_port)
        prefill_rate(asker, args)  # warms up
        alone, _ = prefill_rate(asker, args)
        streams = [Stream(processes.http_port, args) for _ in range(args.streams)]
        for stream in streams:
            stream.start()
        while any(not stream.times for stream in streams):
            time.sleep(0.01)
        begin = time.perf_counter()
        while any(len(stream.gaps_since(begin)) < args.tokens for stream in streams):
            time.sleep(0.01)
        gaps_alone = [gap for stream in streams for gap in stream.gaps_since(begin)]
        begin = time.perf_counter()
        mixed, first_token_s = prefill_rate(asker, args)
        gaps_mixed = [gap for stream in streams for gap in stream.gaps_since(begin)]
        for stream in streams:
            stream.stop = True
        for stream in streams:
            stream.join()
    return {'prefill_alone': alone, 'gaps_alone_ms': gaps_alone, 'prefill_mixed': mixed, 'gaps_mixed_ms': gaps_mixed,
            'first_token_s': first_token_s}


def p99(values):
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def gap_ratio(measured):
    return p99(measured['gaps_mixed_ms']) / p99(measured['gaps_alone_ms'])


def print_row(name, m):
    alone, mixed = m['gaps_alone_ms'], m['gaps_mixed_ms']
    print(f'| {name} | {statistics.median(alone):.1f}, {p99(alone):.1f} | {statistics.median(mixed):.1f}, {p99(mixed):.1f}, '
          f'{max(mixed):.0f} | {gap_ratio(m):.2f} | {m["prefill_alone"]:.0f} | {m["prefill_mixed"]:.0f} '
          f'({m["prefill_mixed"] / m["prefill_alone"]:.2f}) | {statistics.median(m["first_token_s"]):.2f} | '
          f'{m.get("expert_megabytes_a_prompt", 0):.0f} |')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True)
    parser.add_argument('--peers', action='store_true')
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)),
                        help='of a mixed worker and of the peers; the cluster has a core for each stage')
    parser.add_argument('--target-ms', type=float, default=100, help='of a mixed worker that has one')
    parser.add_argument('--only', default='', help='engines whose names contain this')
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--seed', type=int, default=1)
    peer_options.add_mixed(parser)
    args = parser.parse_args()
    random.seed(args.seed)
    target = f'--step-target-ms={args.target_ms}'
    runs = {'cluster: prefill and decode worker': cluster,
            'mixed worker, chunks of 512': worker,
            f'mixed worker, chunked, {args.target_ms:g} ms': lambda a: worker(a, target),
            f'mixed worker, layered, {args.target_ms:g} ms': lambda a: worker(a, target, '--prefill-policy=layered'),
            'mixed worker, layered, no target': lambda a: worker(a, '--prefill-policy=layered')}
    if args.peers:
        runs.update({name: lambda a, script=script: peer(a, script) for name, script in PEERS.items()})
    runs = {name: run for name, run in runs.items() if args.only in name}
    best = {}
    for number in range(args.rounds):
        for name, run in runs.items():
            print(f'round {number + 1}/{args.rounds}: {name}', file=sys.stderr)
            seen = [measured for measured in (try_run(name, run, args), best.get(name)) if measured]
            if seen:
                best[name] = min(seen, key=gap_ratio)
    print(f'{args.streams} answers behind {args.context} tokens, prompts of {args.prompt}, best of {args.rounds} rounds; '
          f'threads of a mixed worker and of the peers: {args.threads}')
    print('| engine | gap alone: p50, p99 (ms) | gap beside prompts: p50, p99, longest | p99 ratio | prompt tok/s alone | '
          'beside answers (ratio) | first token (s) | MB of experts a prompt |')
    print('| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |')
    for name, measured in best.items():
        print_row(name, measured)


if __name__ == '__main__':
    main()
