"""A client of the router's HTTP door that looks at the clock and at what came from the cache, and the configuration
that tells tenants apart by its keys."""
import collections
import hashlib
import http.client
import json
import time

# Seconds to the first token and to the end, the answer's tokens as texts, usage, and the request's id.
Answer = collections.namedtuple('Answer', 'first_s all_s tokens usage request')


class Asker:
    """One connection, one request at a time."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection('127.0.0.1', port)

    def events(self, prompt, key, **fields):
        """What comes of a request, as it comes. Of a text or of token ids; exactly `max_tokens` tokens of answer."""
        # With logprobs each token is an event, even where its text is not whole yet.
        return self.stream('/v1/completions', key, prompt=prompt, ignore_eos=True, logprobs=0, **fields)

    def stream(self, path, key=None, **fields):
        """The events of a greedy answer of any kind."""
        yield from self.send(path, body_of(**fields), key)

    def send(self, path, body, key=None):
        headers = {'Content-Type': 'application/json', **({'Authorization': f'Bearer {key}'} if key else {})}
        self.connection.request('POST', path, body, headers)
        answer = self.connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f'status {answer.status}: {answer.read().decode()}')
        for line in answer:
            if not line.startswith(b'data: {'):
                continue
            event = json.loads(line[6:])
            if 'error' in event:
                raise SystemExit(f'the request failed: {event}')
            yield event

    def ask(self, prompt, key, **fields):
        begin, first, tokens, usage = time.perf_counter(), None, [], None
        for event in self.events(prompt, key, **fields):
            first = first or time.perf_counter() - begin
            usage = event.get('usage') or usage
            tokens += tokens_of(event)
        return Answer(first, time.perf_counter() - begin, tokens, usage, event['id'].removeprefix('cmpl-'))


def body_of(**fields):
    return json.dumps({'temperature': 0, 'stream': True, 'stream_options': {'include_usage': True}, **fields})


def tokens_of(event):
    return [token for choice in event['choices'] for token in (choice['logprobs'] or {}).get('tokens', [])]


def cached_tokens(answer):
    return answer.usage['prompt_tokens_details']['cached_tokens']


def tenancy(keys, public_text=None):
    """A router's configuration with one tenant for each key, called like it."""
    text = 'tenancy:\n  tenants:\n'
    for key in keys:
        text += f'    - {{id: {key}, api_key_sha256: [{hashlib.sha256(key.encode()).hexdigest()}]}}\n'
    if public_text:
        text += f'  public_prefixes:\n    - {{id: public, text: "{public_text}"}}\n'
    return text
