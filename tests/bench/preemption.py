"""Throughput of decode admission on expected length beside full reservation, on pools that cannot hold all.

A cluster of real processes under batch_invariant numerics, each worker with one thread. 32 chat questions
at a time, sampled, every one with the same large max_tokens; their answers end by themselves, long before.
Two pools: one holds 8 requests reserved in full, the other 8 requests of the length that they turn out to
have. Every answer has to be that of its solo run.
"""
import argparse
import concurrent.futures
import json
import statistics
import sys
import time
import urllib.request

from cluster import Cluster

BLOCK_TOKENS = 16
BLOCK_BYTES = BLOCK_TOKENS * 23040  # of SmolLM2-135M, 30 layers
THINGS = ('rain', 'a clock', 'the moon', 'bread', 'a bicycle', 'salt', 'a mirror', 'the sea')
QUESTIONS = [form.format(thing) for thing in THINGS for form in (
    'In one short sentence, what is {}?', 'Write two sentences about {}.', 'Name a colour that goes with {}.',
    'Why do people like {}?')]


class Questioned(Cluster):
    def __init__(self, args, blocks, admission):
        super().__init__(args.model, worker=['--threads', '1', '--numerics', 'batch_invariant'],
                         prefill=['--kv-memory', '256MiB'],
                         decode=['--kv-memory', str(blocks * BLOCK_BYTES), '--admission', admission])

    def ask_one(self, number, max_tokens):
        """The answer's text, its tokens and the prompt's, and the seconds to the first token. Over HTTP from here:
        a client process for each question would take the workers' cores."""
        body = {'messages': [{'role': 'user', 'content': QUESTIONS[number]}], 'temperature': 0.7, 'seed': number,
                'max_tokens': max_tokens, 'stream': True, 'stream_options': {'include_usage': True}}
        request = urllib.request.Request(self.url + '/v1/chat/completions',
                                         json.dumps(body).encode(), {'Content-Type': 'application/json'})
        begin, first, text, usage = time.monotonic(), None, '', None
        with urllib.request.urlopen(request) as events:
            for line in events:
                if not line.startswith(b'data: {'):
                    continue
                event = json.loads(line[6:])
                if 'error' in event:
                    sys.exit(f'request {number} failed: {event}')
                first = first or time.monotonic() - begin
                usage = event.get('usage') or usage
                text += ''.join(choice['delta'].get('content') or '' for choice in event['choices'])
        return {'text': text, 'tokens': usage['completion_tokens'], 'prompt_tokens': usage['prompt_tokens'],
                'first_token_s': first}

    def ask_all(self, max_tokens):
        """All questions at once: the answers, and the seconds from the first question to the last answer."""
        with concurrent.futures.ThreadPoolExecutor(len(QUESTIONS)) as pool:
            begin = time.monotonic()
            answers = list(pool.map(lambda i: self.ask_one(i, max_tokens), range(len(QUESTIONS))))
            return answers, time.monotonic() - begin

    def preempted(self):
        page = self.metrics('decode-0').splitlines()
        return sum(int(float(line.split()[-1])) for line in page if 'outcome="preempted"' in line)


def texts_of(answers):
    return [answer['text'] for answer in answers]


def measure(args, blocks, admission, solo):
    """Best tokens/s of the rounds, median wait for the first token in the best one, preemptions a round."""
    with Questioned(args, blocks, admission) as cluster:
        best, wait = 0, 0
        for round_number in range(args.rounds + 1):
            if round_number == 1:
                before = cluster.preempted()
            answers, seconds = cluster.ask_all(args.max_tokens)
            if texts_of(answers) != texts_of(solo):
                sys.exit(f'{admission}: an answer is not that of its solo run')
            rate = sum(answer['tokens'] for answer in solo) / seconds
            if round_number > 0 and rate > best:  # the first round shows decode how long answers are
                best = rate
                wait = statistics.median(1000 * a['first_token_s'] for a in answers)
        return best, wait, (cluster.preempted() - before) / args.rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', required=True)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--max-tokens', type=int, default=1024)
    args = parser.parse_args()
    blocks_for = lambda tokens: -(-tokens // BLOCK_TOKENS)
    with Questioned(args, 2 * blocks_for(args.max_tokens + 128), 'full') as cluster:
        solo = [cluster.ask_one(i, args.max_tokens) for i in range(len(QUESTIONS))]
    lengths = sorted(answer['tokens'] for answer in solo)
    sizes = [answer['prompt_tokens'] + answer['tokens'] for answer in solo]
    prompt = max(answer['prompt_tokens'] for answer in solo)
    print(f'{len(solo)} requests at once, max_tokens {args.max_tokens}; answers of {lengths[0]} to {lengths[-1]} tokens, '
          f'median {statistics.median(lengths):.0f}, mean {statistics.mean(lengths):.0f}')
    for name, blocks in (('reserved in full', 8 * blocks_for(prompt + args.max_tokens)),
                         ('as long as they turn out', max(blocks_for(prompt + args.max_tokens),
                                                          8 * blocks_for(int(statistics.mean(sizes)))))):
        print(f'pool of {blocks} blocks, for 8 requests {name}:')
        base = None
        for admission in ('full', 'expected'):
            rate, wait, preempted = measure(args, blocks, admission, solo)
            base = base or rate
            print(f'  {admission:8}  {rate:6.1f} tok/s ({rate / base:.2f})  first token after {wait:6.0f} ms (median)  '
                  f'{preempted:.1f} preemptions a round', flush=True)
    print('every answer equal to its solo run')


if __name__ == '__main__':
    main()
