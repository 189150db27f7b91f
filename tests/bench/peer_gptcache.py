"""The time of a look-up in GPTCache (PyPI gptcache 0.1.44 with faiss) that finds nothing near, beside ours.

    python peer_gptcache.py ENTRIES

Vectors are random; as with ours, the embedding is not part of the time. GPTCache searches, then fetches what it found from
SQLite to judge it.
"""
import statistics
import sys
import tempfile
import time

import numpy as np
from gptcache.manager import CacheBase, VectorBase, get_data_manager

DIM, SEARCHES = 384, 300


def main():
    entries = int(sys.argv[1])
    source = np.random.default_rng(1)
    vectors = source.standard_normal((entries, DIM)).astype('float32')
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        manager = get_data_manager(
            CacheBase('sqlite', sql_url=f'sqlite:///{folder}/cache.db'),
            VectorBase('faiss', dimension=DIM, index_path=f'{folder}/faiss.index'), max_size=entries + 1)
        for begin in range(0, entries, 2000):
            part = vectors[begin:begin + 2000]
            names = [f'question {begin + i}' for i in range(len(part))]
            manager.import_data(names, names, list(part), [None] * len(part))
        times = []
        for _ in range(SEARCHES):
            query = source.standard_normal(DIM).astype('float32')
            query /= np.linalg.norm(query)
            begin = time.perf_counter()
            for found in manager.search(query, top_k=1) or []:
                manager.get_scalar_data(found)
            times.append(time.perf_counter() - begin)
    times.sort()
    print(f'GPTCache, {entries} entries: p50 {statistics.median(times) * 1e3:.3f} ms, '
          f'p99 {times[int(len(times) * 0.99)] * 1e3:.3f} ms')


if __name__ == '__main__':
    main()
