"""Prefill and decode speed of the engine, with --peers beside llama.cpp and OpenVINO GenAI in the same run.

Rounds alternate between the engines, so that both see the same noise; the best of all rounds counts.
"""
import argparse
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PEERS = {'llama.cpp': 'peer_llama.py', 'OpenVINO GenAI': 'peer_openvino.py'}
ENGINE = os.path.join(HERE, '..', '..', 'build', 'release', 'bin', 'engine_bench')


def run(command):
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(f'{command[0]} failed: {out.stderr.strip()[-500:]}')
    return json.loads(out.stdout.strip().split('\n')[-1])


def engine(args, isa, numerics, machine):
    """Tokens/s by column; what the run says about loading and the machine goes to `machine`."""
    got = run([ENGINE, '--model', args.model, '--threads', str(args.threads), '--prompt', args.prompt, '--isa', isa,
               '--numerics', numerics, '--sequences', args.sequences, '--repeats', '3', '--json'])
    for name in ('load_to_first_token_seconds', 'resident_megabytes_after_load', 'kv_pool_megabytes'):
        machine[name] = min(got[name], machine.get(name, got[name]))
    machine['weight_megabytes_a_step'] = got['weight_megabytes_a_step']
    machine['read_gigabytes_per_second'] = max(got['read_gigabytes_per_second'], machine.get('read_gigabytes_per_second', 0))
    machine['gigaflops_a_prompt_token'] = got['gigaflops_a_prompt_token']
    peak = f'matmul {isa} {numerics}'
    machine[peak] = max(got['matmul_gigaflops_per_second'], machine.get(peak, 0))
    return {**{f'prefill {p["prompt"]}': p['tokens_per_second'] for p in got['prefill']},
            **{f'decode {d["sequences"]}': d['tokens_per_second'] for d in got['decode']}}


def peer(args, script):
    rates = {}
    for number, prompt in enumerate(args.prompt.split(',')):
        sequences = args.sequences if number == 0 else '1'
        got = run([sys.executable, os.path.join(HERE, script), args.model, '--threads', str(args.threads),
                   '--prompt', prompt, '--sequences', sequences])
        rates[f'prefill {prompt}'] = got['prefill_tokens_per_s']
        if number == 0:
            decode = {f'decode {s}': rate for s, rate in got['decode_tokens_per_s'].items()}
    return {**rates, **decode}


def report_machine(args, best, machine):
    size = os.path.getsize(args.model) / 1e6
    held = machine['resident_megabytes_after_load'] - machine['kv_pool_megabytes']
    bound = 1000 * machine['read_gigabytes_per_second'] / machine['weight_megabytes_a_step']
    print(f'load to first token {machine["load_to_first_token_seconds"]:.2f} s; resident without the KV pool '
          f'{held:.0f} MB, {held / size:.2f} of the file')
    print(f'weights {machine["weight_megabytes_a_step"]:.1f} MB a step, as many read, from caches too, at '
          f'{machine["read_gigabytes_per_second"]:.1f} GB/s: at most {bound:.0f} steps/s')
    for name, rates in best.items():
        if name not in PEERS and 'decode 1' in rates:
            print(f'  {name}: one sequence at {rates["decode 1"] / bound:.2f} of it')
    print('products of a layer with 512 rows, and what part of that speed prefill has in its matrices:')
    for name, rates in best.items():
        if name in PEERS:
            continue
        peak = machine[f'matmul {name}']
        parts = ', '.join(f'{rate * machine["gigaflops_a_prompt_token"] / peak:.2f} ({column})'
                          for column, rate in rates.items() if column.startswith('prefill'))
        print(f'  {name}: {peak:.0f} GFLOP/s; {parts}')


def supported_isas():
    flags = next(line for line in open('/proc/cpuinfo') if line.startswith('flags')).split()
    needs = {'avx2': ['avx2', 'fma', 'f16c'], 'avx512': ['avx512f', 'avx512bw', 'avx512vl'], 'amx': ['amx_bf16']}
    return [isa for isa, wants in needs.items() if all(w in flags for w in wants)]


def cell(best, peers, name, column):
    rate = best[name][column]
    ratios = ', '.join(f'{rate / best[peer_name][column]:.2f}' for peer_name in peers)
    return f'{rate:.0f}' + (f' ({ratios})' if ratios else '')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', required=True)
    parser.add_argument('--peers', action='store_true')
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--prompt', default='128,512,2048')
    parser.add_argument('--sequences', default='1,16,64')
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()

    peers = PEERS if args.peers else {}
    machine = {}
    runs = {name: lambda script=script: peer(args, script) for name, script in peers.items()}
    for isa in supported_isas():
        for numerics in ('fast', 'batch_invariant'):
            runs[f'{isa} {numerics}'] = (
                lambda isa=isa, numerics=numerics: engine(args, isa, numerics, machine))
    best = {name: {} for name in runs}
    for number in range(args.rounds):
        for name, measure in runs.items():
            print(f'round {number + 1}/{args.rounds}: {name}', file=sys.stderr)
            for what, rate in measure().items():
                best[name][what] = max(rate, best[name].get(what, 0))

    columns = list(next(iter(best.values())))
    ratios = f'; in brackets the ratios to {" and ".join(peers)}' if peers else ''
    print(f'tokens/s, {args.threads} threads, best of {args.rounds} rounds{ratios}')
    print('| engine |' + ''.join(f' {c} |' for c in columns))
    print('| --- |' + ' ---: |' * len(columns))
    for name, rates in best.items():
        print(f'| {name} | ' + ' | '.join(cell(best, peers, name, c) for c in columns) + ' |')
    report_machine(args, best, machine)


if __name__ == '__main__':
    main()
