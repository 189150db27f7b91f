"""Pictures: what two encode workers take beside one, what a cached picture costs, and how long text waits beside pictures.

Real processes with one thread each, numerics fast. Pictures are new ones in blocks of random colours, as large in bytes as
photographs of their side. The tower is synthetic: its answers mean nothing, its work is that of a SigLIP of that shape, in
float32. Encode time is the router's own: from the first slice that a request asks for to the last that has landed.
The aggregated baseline is the same worker with the tower in the prefill process (encode: local).
"""
import argparse
import base64
import os
import random
import re
import statistics
import struct
import subprocess
import tempfile
import threading
import time
import zlib

from asker import Asker, body_of
from cluster import BUILT, Cluster

SLICE_TOKENS = 64  # of the synthetic tower
BLOCK = 4          # pixels of one colour, each way


def png(side):
    rows = b''.join((b'\0' + b''.join(os.urandom(3) * BLOCK for _ in range(side // BLOCK))) * BLOCK
                    for _ in range(side // BLOCK))
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)) +
            chunk(b'IDAT', zlib.compress(rows, 6)) + chunk(b'IEND', b''))


def parts(pictures, text):
    url = lambda picture: 'data:image/png;base64,' + base64.b64encode(picture).decode()
    return [{'type': 'image_url', 'image_url': {'url': url(p)}} for p in pictures] + [{'type': 'text', 'text': text}]


def first_token_s(port, content):
    """Seconds to the first token, and the prompt's tokens: all of them, and those that were cached."""
    body = body_of(messages=[{'role': 'user', 'content': content}], max_tokens=2)
    begin, first, usage = time.perf_counter(), None, None
    for event in Asker(port).send('/v1/chat/completions', body):
        if first is None and event['choices'] and event['choices'][0]['delta'].get('content') is not None:
            if not event['choices'][0]['delta'].get('role'):
                first = time.perf_counter() - begin
        usage = event.get('usage') or usage
    return first or time.perf_counter() - begin, usage


def words(count):
    return ' '.join(random.choices(('time', 'year', 'people', 'way', 'day', 'man', 'thing', 'woman', 'life', 'child'), k=count))


def metric(cluster, name, which):
    return float(re.search(rf'^{which} (\S+)$', cluster.metrics(name), re.M)[1])


def peak_bytes(cluster, name):
    """The most memory that the process has had resident."""
    with open(f'/proc/{cluster.processes[name].pid}/status') as file:
        return int(re.search(r'VmHWM:\s+(\d+) kB', file.read())[1]) * 1024


class PictureLoad(threading.Thread):
    """Clients that ask about new pictures, until it is stopped."""

    def __init__(self, port, side, pictures):
        super().__init__(daemon=True)
        self.port, self.side, self.pictures, self.is_over, self.count = port, side, pictures, False, 0
        self.failure = None

    def run(self):
        try:
            while not self.is_over:
                first_token_s(self.port, parts([png(self.side) for _ in range(self.pictures)], words(4)))
                self.count += 1
        except SystemExit as failure:  # a thread would end of it without a word
            self.failure = failure

    def stop(self):
        self.is_over = True
        self.join()
        if self.failure is not None:
            raise self.failure


def cluster_of(args, tower, encode_workers, local=None, kv='512MiB'):
    prefill = ['--threads', 1, '--pictures-memory', '128MiB' if local else '64MiB'] + (['--config', local] if local else [])
    return Cluster(args.model, worker=['--kv-memory', kv], prefill=prefill, decode=['--threads', 1],
                   encode=['--threads', 1, '--pictures-memory', '64MiB'], encode_workers=encode_workers, tower=tower,
                   router=['--tower', tower])


def encode_times(args, clusters, pictures):
    """Of one request after the other, in turn on the clusters: the median of each."""
    times = [[] for _ in clusters]
    for i in range(args.rounds + 1):
        for cluster, of in zip(clusters, times):
            before = metric(cluster, 'router', 'trivium_router_encode_seconds_sum')
            first_token_s(cluster.http_port, parts([png(args.side) for _ in range(pictures)], words(4)))
            of.append(metric(cluster, 'router', 'trivium_router_encode_seconds_sum') - before)
    return [statistics.median(of[1:]) for of in times]


def hit_times(args, cluster, pictures):
    port = cluster.http_port
    picture_content = parts([png(args.side) for _ in range(pictures)], words(4))
    text_content = words(pictures * SLICE_TOKENS + 4)
    for content in (picture_content, text_content):
        first_token_s(port, content)
    hit, text = [], []
    for _ in range(args.rounds):
        hit.append(first_token_s(port, picture_content))
        text.append(first_token_s(port, text_content))
    assert all(usage['prompt_tokens_details']['cached_tokens'] > 0 for _, usage in hit + text)
    return statistics.median(t for t, _ in hit), statistics.median(t for t, _ in text)


def text_times(args, cluster, loads):
    load = [PictureLoad(cluster.http_port, args.side, 2) for _ in range(loads)]
    for one in load:
        one.start()
    begin, times = time.perf_counter(), []
    while time.perf_counter() - begin < args.seconds:
        times.append(first_token_s(cluster.http_port, words(60))[0])
    for one in load:
        one.stop()
    return sorted(times), sum(one.count for one in load) / (time.perf_counter() - begin)


def p99(times):
    return times[min(len(times) - 1, int(len(times) * 0.99))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', required=True)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--seconds', type=float, default=12)
    parser.add_argument('--side', type=int, default=256)
    parser.add_argument('--only', choices=('encode', 'text'), help='one half of it')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tower, local = f'{folder}/tower.gguf', f'{folder}/local.yaml'
        subprocess.run([BUILT / 'synthetic_tower', tower], check=True)
        with open(local, 'w') as file:
            file.write(f'pictures:\n  encode: local\n  tower: {tower}\n')
        if args.only != 'text':
            with cluster_of(args, tower, 1) as one, cluster_of(args, tower, 2) as two:
                single, double = encode_times(args, (one, two), 4)
                hit, text = hit_times(args, one, 4)
                memory = {name: peak_bytes(one, name) for name in ('encode-0', 'prefill-0', 'decode-0')}
            # Model and tower are there once, and both stages' KV: what one process that did all three would have.
            with cluster_of(args, tower, 0, local, '1GiB') as all_in_one:
                for _ in range(3):
                    first_token_s(all_in_one.http_port, parts([png(args.side) for _ in range(4)], words(4)))
                memory['E+P+D in one process'] = peak_bytes(all_in_one, 'prefill-0')
            print(f'encode time of 4 pictures   one worker {single * 1e3:7.1f} ms   two workers {double * 1e3:7.1f} ms'
                  f'   ratio {double / single:.2f}')
            print(f'first token, cached         pictures   {hit * 1e3:7.1f} ms   text        {text * 1e3:7.1f} ms'
                  f'   ratio {hit / text:.2f}')
            print('peak resident MiB           ' + '   '.join(f'{name} {b / 2**20:.0f}' for name, b in memory.items()) +
                  f"   one process / encode worker {memory['E+P+D in one process'] / memory['encode-0']:.1f}")
        if args.only != 'encode':
            for name, encode_workers, config in (('encode worker', 1, None), ('encode: local', 0, local)):
                with cluster_of(args, tower, encode_workers, config) as cluster:
                    alone, _ = text_times(args, cluster, 0)
                    beside, rate = text_times(args, cluster, 2)
                    resident = peak_bytes(cluster, 'prefill-0')
                print(f'text p99 to first token     {name:13}   alone {p99(alone) * 1e3:7.1f} ms   beside pictures '
                      f'{p99(beside) * 1e3:7.1f} ms   ratio {p99(beside) / p99(alone):.2f}   median '
                      f'{statistics.median(beside) / statistics.median(alone):.2f}   {rate:.1f} picture requests/s   '
                      f'prefill worker {resident / 2**20:.0f} MiB')


if __name__ == '__main__':
    main()
