"""Three workloads, each under all placement policies, on the same workers: what is served a second, how long the first
token takes, and how much of the prompts came from a cache beside what one cache that forgets nothing would give.

chat: conversations in which every turn repeats all before it, answers included. tenants: 50 tenants, each behind one
declared public text with instructions of its own. rag: questions about documents, some asked for more than others.

Real processes, each worker with one thread, numerics fast; a fixed number of clients, each waiting for its answer before
it goes on. Every policy gets the same requests and empty caches.
"""
import argparse
import collections
import queue
import random
import threading
import time

from asker import Asker, cached_tokens, tenancy
from cluster import Cluster

BLOCK_TOKENS = 16
POLICIES = ('round_robin', 'least_loaded', 'predicted_cost')
# Each is one token behind a space, so that texts can be made of a known number of tokens.
WORDS = ('time year people way day man thing woman life child world school state family student group country problem hand '
         'part place case week company system program question work government number night point home water room mother '
         'area money story fact month lot right study book eye job word business').split()

# What one client does in a row: each turn's prompt is all before, answers included, and new tokens.
Session = collections.namedtuple('Session', 'tenant turns')
# The public part of prompts is in tokens, as all prompts are: ids or WORDS.
Workload = collections.namedtuple('Workload', 'sessions answer_tokens public', defaults=[()])


def ids(count):
    return [random.randrange(100, 40000) for _ in range(count)]


def words(count):
    return random.choices(WORDS, k=count)


def chat():
    system = ids(64)
    return Workload([Session('t0', [(system if turn == 0 else []) + ids(64) for turn in range(5)]) for _ in range(16)], 24)


def tenants():
    public = words(384)
    sessions = []
    for tenant in range(50):
        instructions = words(96)
        sessions += [Session(f't{tenant}', [public + instructions + words(32)]) for _ in range(2)]
    random.shuffle(sessions)
    return Workload(sessions, 16, tuple(public))


def rag():
    instructions, documents = ids(32), [ids(384) for _ in range(16)]
    by_rank = [1 / (rank + 1) for rank in range(len(documents))]
    asked = random.choices(documents, by_rank, k=64)
    return Workload([Session('t0', [instructions + document + ids(32)]) for document in asked], 16)


WORKLOADS = {'chat': chat, 'tenants': tenants, 'rag': rag}


class BoundlessCache:
    """Whole blocks of all that was sent or answered, each in its sharing domain."""

    def __init__(self, public):
        self.public, self.blocks = public, set()

    def keys(self, tenant, tokens):
        key, shared = None, 0
        while shared < min(len(tokens), len(self.public)) and tokens[shared] == self.public[shared]:
            shared += 1
        for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
            domain = 'public' if end <= shared else tenant
            key = (hash((key, domain)), hash(tuple(tokens[end - BLOCK_TOKENS:end])))
            yield key

    def found(self, tenant, tokens):
        """Tokens of the prompt; its last one is always computed."""
        count = 0
        for key in self.keys(tenant, tokens[:-1]):
            if key not in self.blocks:
                break
            count += BLOCK_TOKENS
        return count

    def store(self, tenant, tokens):
        self.blocks.update(self.keys(tenant, tokens))


class Run:
    """One workload under one policy."""

    def __init__(self, workload, port):
        self.workload, self.port = workload, port
        self.cache, self.lock = BoundlessCache(workload.public), threading.Lock()
        self.first_s, self.prompt_tokens, self.cached_tokens, self.bound_tokens, self.error = [], 0, 0, 0, None
        self.sessions = queue.SimpleQueue()
        for session in workload.sessions:
            self.sessions.put(session)

    def turn(self, asker, tenant, tokens):
        """The answer's tokens. Which ones they are makes no difference to anybody's speed, so a bias decides it."""
        with self.lock:
            bound = self.cache.found(tenant, tokens)
            self.cache.store(tenant, tokens)
        is_text = isinstance(tokens[0], str)
        said = tokens[-1]
        fields = {} if is_text else {'logit_bias': {str(said): 100}}
        answer = asker.ask(' '.join(tokens) if is_text else tokens, tenant, max_tokens=self.workload.answer_tokens, **fields)
        if answer.usage['prompt_tokens'] != len(tokens) or (not is_text and len(set(answer.tokens)) != 1):
            raise SystemExit(f'not the tokens that were meant: {answer}')
        reply = [said] * self.workload.answer_tokens
        with self.lock:
            if not is_text:
                self.cache.store(tenant, tokens + reply[:-1])  # the last one's KV is not needed before the next turn
            self.first_s.append(answer.first_s)
            self.prompt_tokens += len(tokens)
            self.cached_tokens += cached_tokens(answer)
            self.bound_tokens += bound
        return reply

    def client(self):
        asker = Asker(self.port)
        try:
            while True:
                session, tokens = self.sessions.get_nowait(), []
                for new in session.turns:
                    tokens = tokens + new
                    tokens = tokens + self.turn(asker, session.tenant, tokens)
        except queue.Empty:
            return
        except BaseException as error:  # a thread's own would be lost
            self.error = error

    def go(self, clients):
        """Seconds until the last answer."""
        threads = [threading.Thread(target=self.client) for _ in range(clients)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error
        return time.perf_counter() - begin


def measure(args, workload, policy):
    names = sorted({session.tenant for session in workload.sessions})
    with Cluster(args.model, worker=['--threads', '1'], router=['--placement', policy],
                 config=tenancy([*names, 'warmup'], ' '.join(workload.public)), key='warmup', prefill_workers=2,
                 decode_workers=args.decode_workers) as cluster:
        Run(Workload([Session('warmup', [ids(256)]) for _ in range(4)], 8), cluster.http_port).go(4)
        run = Run(workload, cluster.http_port)
        return run, run.go(args.clients)


def print_run(policy, run, seconds):
    times = sorted(1e3 * first for first in run.first_s)
    at = lambda share: times[min(len(times) - 1, int(share * len(times)))]
    print(f'{policy:14}  {len(times) / seconds:10.2f}  {run.prompt_tokens / seconds:15.0f}  {at(0.5):8.0f}  {at(0.99):8.0f}  '
          f'{run.cached_tokens / run.prompt_tokens:6.3f}  {run.bound_tokens / run.prompt_tokens:6.3f}  '
          f'{run.cached_tokens / run.bound_tokens:8.3f}  {seconds:6.1f}', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('workloads', nargs='*', default=list(WORKLOADS), help=f'of {", ".join(WORKLOADS)}')
    parser.add_argument('--model', required=True)
    parser.add_argument('--policies', default=','.join(POLICIES))
    parser.add_argument('--clients', type=int, default=8)
    parser.add_argument('--decode-workers', type=int, default=1)
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    for name in args.workloads:
        random.seed(args.seed)
        workload = WORKLOADS[name]()
        print(f'{name}: {sum(len(s.turns) for s in workload.sessions)} requests of {args.clients} clients, 2 prefill and '
              f'{args.decode_workers} decode workers\n'
              f'policy          requests/s  prompt tokens/s  p50 ms    p99 ms    cached  at most  of that    seconds')
        for policy in args.policies.split(','):
            print_run(policy, *measure(args, workload, policy))


if __name__ == '__main__':
    main()
