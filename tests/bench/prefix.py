"""Time to the first token with a cached prefix, and whether it tells one tenant about another.

A cluster of real processes, each worker with one thread, numerics fast, asked over one HTTP connection; prompts are
new random token ids each time. Without --probes: the time with 0, 50, 90 and 99 % of --tokens sent before by the same
tenant (rounded to whole blocks), rounds interleaved, beside what the multiplications alone would give.

With --probes: a coin decides whether tenant A sends a prompt or another one as long, then tenant B sends that prompt;
a second coin, whether B sends it again or a new one. AUC is the chance that a probe of what had been sent was answered
sooner than one of what had not: 0.5 tells nothing, 1 everything.
"""
import argparse
import random
import re
import statistics

from asker import Asker, cached_tokens, tenancy
from cluster import Cluster

BLOCK_TOKENS = 16
SHARES = (0, 0.5, 0.9, 0.99)
PROBES_SHOWN = 50
# Multiplications of SmolLM2-135M: in the layers' matrices for each row, in attention for each row and key, and in the
# output matrix for the last row.
LAYERS, WIDTH, KV_WIDTH, FFN, VOCAB = 30, 576, 192, 1536, 49152
ROW = LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * KV_WIDTH + 3 * WIDTH * FFN)
KEY = LAYERS * 2 * WIDTH


def multiplications(cached, tokens):
    rows = tokens - cached
    return rows * ROW + (rows * cached + rows * (rows + 1) // 2) * KEY + WIDTH * VOCAB


def ask(asker, ids, key):
    """Seconds to the first token, the tokens taken from the cache, and the request's id."""
    answer = asker.ask(ids, key, max_tokens=2)
    return answer.first_s, cached_tokens(answer), answer.request


def prompt(tokens):
    return [random.randrange(100, 40000) for _ in range(tokens)]


def measure_round(asker, tokens, lengths, key):
    """One request for each number of cached tokens, in random order, all behind those that fill the cache."""
    prompts = {cached: prompt(tokens) for cached in lengths}
    for cached, ids in prompts.items():
        if cached > 0:
            ask(asker, ids[:cached], key)
    answers = {}
    for cached in random.sample(lengths, len(lengths)):
        seconds, found, request = ask(asker, prompts[cached], key)
        if found != cached:
            raise SystemExit(f'{found} tokens were found in the cache, {cached} had been sent')
        answers[cached] = (1e3 * seconds, request)
    return answers


def prefilled_by(log, request):
    worker = re.search(rf'request_end .*request_id={request} .* prefill=(\S*)', log).group(1)
    return 'decode worker' if worker in ('', '""') else 'prefill worker'


def print_reuse(tokens, lengths, rounds, log):
    print(f'{tokens} tokens, {len(rounds)} rounds: milliseconds to the first token, and ratios to none cached')
    print('cached     median (ratio)       best (ratio)  by multiplications  prefilled by')
    cold = [r[0][0] for r in rounds]
    for cached in lengths:
        times = [r[cached][0] for r in rounds]
        where = {prefilled_by(log, r[cached][1]) for r in rounds}
        median, best = statistics.median(times), min(times)
        bound = multiplications(cached, tokens) / multiplications(0, tokens)
        print(f'{cached:6}  {median:9.1f} ({median / statistics.median(cold):.3f})  {best:9.1f} ({best / min(cold):.3f})'
              f'  {bound:18.3f}  {" or ".join(sorted(where))}')


def auc(sent, other):
    """The chance that one of `sent` is less than one of `other`, a tie counting half; and its standard error
    where there is no difference."""
    wins = sum((a < b) + (a == b) / 2 for a in sent for b in other)
    return wins / (len(sent) * len(other)), ((len(sent) + len(other) + 1) / (12 * len(sent) * len(other))) ** 0.5


def probe(asker, tokens, probes):
    """Prints, now and then, how far the times of probes of what had been sent differ from those of what had not:
    of another tenant's prompts, and of one's own."""
    across, inside = {True: [], False: []}, {True: [], False: []}
    for done in range(1, probes + 1):
        ids, other, new = prompt(tokens), prompt(tokens), prompt(tokens)
        sent, again = random.random() < 0.5, random.random() < 0.5
        ask(asker, ids if sent else other, 'alice')
        seconds, found, _ = ask(asker, ids, 'bob')
        if found > 0:
            raise SystemExit(f'{found} tokens of another tenant were found in the cache')
        across[sent].append(seconds)
        inside[again].append(ask(asker, ids if again else new, 'bob')[0])
        if done == probes or done % PROBES_SHOWN == 0:
            print_probes(tokens, across, inside)


def print_probes(tokens, across, inside):
    for name, times in (('another tenant', across), ('the same tenant', inside)):
        if not times[True] or not times[False]:
            continue
        area, error = auc(times[True], times[False])
        medians = [1e3 * statistics.median(times[sent]) for sent in (True, False)]
        print(f'prompts of {tokens} tokens that {name} had sent or not, {len(times[True])} and {len(times[False])} probes: '
              f'AUC {area:.3f} (chance alone: 0.5 ± {error:.3f}), median {medians[0]:.1f} and {medians[1]:.1f} ms', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--tokens', type=int, help='of a prompt, default 2048, with --probes 256')
    parser.add_argument('--probes', type=int, default=0, help='how many; hundreds at least, for chance to even out')
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    random.seed(args.seed)
    tokens = args.tokens or (256 if args.probes else 2048)
    # The last token is always computed.
    blocks = [min(round(share * tokens / BLOCK_TOKENS), (tokens - 1) // BLOCK_TOKENS) for share in SHARES]
    lengths = [count * BLOCK_TOKENS for count in blocks]
    with Cluster(args.model, worker=['--threads', '1'], config=tenancy(('alice', 'bob')), key='alice') as cluster:
        asker = Asker(cluster.http_port)
        ask(asker, prompt(tokens), 'alice')
        if args.probes:
            return probe(asker, tokens, args.probes)
        rounds = [measure_round(asker, tokens, lengths, 'alice') for _ in range(args.rounds)]
        print_reuse(tokens, lengths, rounds, cluster.logs())


if __name__ == '__main__':
    main()
