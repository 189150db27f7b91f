"""What the unmodified client of PyPI gets from the OpenAI-compatible API, and the README's curl lines.

    openai_test.py BIN_DIR
"""

import asyncio
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest

import openai

from cluster import Cluster

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"
README_PORT = "7480"
CLUSTER = None
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "seed": 1}
IDLE_S = 30


def metric(process, series):
    return float(re.search(rf"^trivium_{re.escape(series)} (\S+)$", CLUSTER.metrics(process), re.MULTILINE)[1])


def await_metric(process, series, wanted):
    deadline = time.monotonic() + IDLE_S
    while (value := metric(process, series)) != wanted:
        assert time.monotonic() < deadline, f"{series} stays at {value}"
        time.sleep(0.05)


class OpenAiTest(unittest.TestCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=CLUSTER.url + "/v1", api_key="none", max_retries=0)
        self.model = self.client.models.list().data[0].id

    def chat(self, **more):
        return self.client.chat.completions.create(
            **{"model": self.model, "messages": QUESTION, "max_tokens": 6, **GREEDY, **more})

    def complete(self, prompt, **more):
        return self.client.completions.create(
            **{"model": self.model, "prompt": prompt, "max_tokens": 12, **GREEDY, **more})

    def test_several_choices(self):
        choices = self.chat(n=3, temperature=1).choices
        self.assertEqual([c.index for c in choices], [0, 1, 2])
        alone = [self.chat(temperature=1, seed=1 + i).choices[0].message.content for i in range(3)]
        self.assertEqual([c.message.content for c in choices], alone)

    def test_models(self):
        (card,) = self.client.models.list().data
        self.assertEqual((card.object, card.owned_by), ("model", "trivium"))
        self.assertEqual(self.client.models.retrieve(card.id), card)
        with self.assertRaises(openai.NotFoundError) as raised:
            self.client.models.retrieve("gpt-17")
        self.assertEqual(raised.exception.code, "model_not_found")

    def test_a_chat_and_its_stream_say_the_same(self):
        whole = self.chat()
        self.assertEqual(whole.object, "chat.completion")
        self.assertEqual(whole.model, self.model)
        self.assertTrue(whole.id.startswith("chatcmpl-"))
        self.assertTrue(whole.system_fingerprint.startswith("fp_"))
        (choice,) = whole.choices
        self.assertEqual((choice.message.role, choice.finish_reason), ("assistant", "length"))
        self.assertEqual(whole.usage.completion_tokens, 6)
        self.assertEqual(whole.usage.total_tokens, whole.usage.prompt_tokens + 6)
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual({chunk.object for chunk in chunks}, {"chat.completion.chunk"})
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, choice.message.content)
        self.assertEqual(chunks[-2].choices[0].finish_reason, "length")
        self.assertEqual(chunks[-1].choices, [])
        usage = chunks[-1].usage
        # The prompt of the second request was found in the cache, but for its last block.
        self.assertEqual(whole.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertEqual(usage.prompt_tokens_details.cached_tokens, (usage.prompt_tokens - 1) // 16 * 16)
        usage.prompt_tokens_details = whole.usage.prompt_tokens_details
        self.assertEqual(usage, whole.usage)

    def test_parts_and_stops(self):
        parts = [{"role": "user", "content": [{"type": "text", "text": "What is the capital "},
                                              {"type": "text", "text": "of France?"}]}]
        text = self.chat(max_tokens=24).choices[0].message.content
        self.assertEqual(self.chat(messages=parts, max_tokens=24).choices[0].message.content, text)
        word = text.split()[2]
        stopped = self.chat(max_tokens=24, stop=[word]).choices[0]
        self.assertEqual(stopped.finish_reason, "stop")
        self.assertEqual(stopped.message.content, text[:text.index(word)])

    def test_completions_of_several_prompts(self):
        prompts = ["One, two, three,", "The sky is"]
        solo = [self.complete(prompt).choices[0].text for prompt in prompts]
        both = self.complete(prompts)
        self.assertEqual(both.object, "text_completion")
        self.assertEqual([c.text for c in both.choices], solo)
        streamed = ["", ""]
        for chunk in self.complete(prompts, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        self.assertEqual(streamed, solo)

    def test_logprobs(self):
        choice = self.chat(logprobs=True, top_logprobs=3).choices[0]
        content = choice.logprobs.content
        self.assertEqual(len(content), 6)
        joined = b"".join(bytes(token.bytes) for token in content)
        self.assertEqual(joined.decode(), choice.message.content)
        for token in content:
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.logprob, token.top_logprobs[0].logprob, "greedy takes the best")
        legacy = self.complete("One, two,", logprobs=2).choices[0]
        self.assertEqual("".join(legacy.logprobs.tokens), legacy.text)
        self.assertEqual(legacy.logprobs.text_offset[1], len(legacy.logprobs.tokens[0]))

    def test_errors_name_the_parameter(self):
        for bad, param in [({"temperature": 200}, "temperature"),
                           ({"top_p": 0}, "top_p"),
                           ({"max_completion_tokens": 0, "max_tokens": None}, "max_completion_tokens"),
                           ({"extra_body": {"min_p": "x"}}, "min_p"),
                           ({"extra_body": {"n": "two"}}, "n"),
                           ({"messages": []}, "messages"),
                           ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
                           ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
                           ({"response_format": {"type": "json_object"}}, "response_format")]:
            with self.subTest(param=param), self.assertRaises(openai.BadRequestError) as raised:
                self.chat(**bad)
            self.assertEqual(raised.exception.param, param)
            self.assertEqual(raised.exception.type, "invalid_request_error")
        with self.assertRaises(openai.NotFoundError):
            self.chat(model="gpt-17")
        with self.assertRaises(openai.BadRequestError) as raised:
            self.complete("word " * 9000)
        self.assertEqual(raised.exception.param, "prompt")

    def test_unknown_fields_are_ignored(self):
        self.chat(user="somebody", extra_body={"no_such_field": [1, {}]})

    def test_a_closed_stream_frees_its_blocks(self):
        left = metric("router", "router_http_clients_left_total")
        stream = self.chat(max_tokens=4000, stream=True, extra_body={"ignore_eos": True})
        for _ in range(3):
            next(stream)
        self.assertGreater(metric("decode-0", 'kv_blocks{state="used"}'), 0)
        stream.close()
        await_metric("decode-0", 'kv_blocks{state="used"}', 0)
        await_metric("router", "router_http_clients_left_total", left + 1)

    def test_many_streams_at_once_say_what_each_says_alone(self):
        prompts = [f"Item {i} of the list is" for i in range(12)]
        alone = [self.complete(prompt).choices[0].text for prompt in prompts]

        async def ask(client, prompt):
            stream = await client.completions.create(model=self.model, prompt=prompt, max_tokens=12,
                                                     stream=True, **GREEDY)
            return "".join([chunk.choices[0].text async for chunk in stream])

        async def ask_all():
            async with openai.AsyncOpenAI(base_url=CLUSTER.url + "/v1", api_key="none",
                                          max_retries=0) as client:
                return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))

        self.assertEqual(asyncio.run(ask_all()), alone)

    @unittest.skipUnless(shutil.which("curl"), "curl is not installed")
    def test_the_curl_lines_of_the_readme(self):
        text = README.read_text().replace("\\\n", " ")
        lines = [line.strip() for line in text.splitlines() if f"curl -s" in line and README_PORT in line]
        self.assertEqual(len(lines), 3)
        port = str(CLUSTER.http_port)
        out = [subprocess.run(["bash", "-c", line.replace(README_PORT, port)], check=True,
                              capture_output=True, text=True).stdout for line in lines]
        self.assertEqual(json.loads(out[0])["object"], "list")
        self.assertEqual(json.loads(out[1])["object"], "chat.completion")
        self.assertTrue(out[2].startswith("data: {") and out[2].endswith("data: [DONE]\n\n"), out[2])


class ZLastDrainTest(unittest.TestCase):
    """Runs last: it ends the router."""

    def test_a_stream_outlives_sigterm(self):
        client = openai.OpenAI(base_url=CLUSTER.url + "/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="", prompt="One,", max_tokens=60, stream=True,
                                           stream_options={"include_usage": True},
                                           extra_body={"ignore_eos": True})
        next(stream)
        router = CLUSTER.processes["router"]
        router.send_signal(signal.SIGTERM)
        last = None
        for last in stream:
            pass
        self.assertEqual(last.usage.completion_tokens, 60)
        stream.close()
        client.close()
        self.assertEqual(router.wait(30), 0, CLUSTER.logs(2000))
        with self.assertRaises(openai.APIConnectionError):
            openai.OpenAI(base_url=CLUSTER.url + "/v1", api_key="none", max_retries=0).models.list()


if __name__ == "__main__":
    CLUSTER = Cluster(os.environ["TRIVIUM_TEST_MODEL"], bin_dir=sys.argv.pop(1),
                      worker=("--kv-memory", "128MiB", "--threads", "1", "--numerics", "batch_invariant"))
    try:
        unittest.main(verbosity=2, exit=True)
    finally:
        CLUSTER.stop()
