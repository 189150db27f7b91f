"""Every role of the rendered chart, and a Prometheus that scrapes them, as processes on loopback."""

import base64
import json
import os
import struct
import subprocess
import threading
import time
import urllib.parse
import urllib.request
import zlib

import yaml

from chart import CHART, ROLES, ROOT, Release
from cluster import PORTS, Processes, free_port, get

TRANSFER_PORT = PORTS.stop
# With a tiny encoder of random weights.
CACHE = f"""
semantic_cache:
  enabled: true
  encoder: {ROOT}/tests/oracle/data/tiny-bert
"""
PICTURE = ROOT / "tests/fuzz/corpus/png/rgb"


def post(url, body):
    """The text that a POST of the body as JSON gives."""
    return get(urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}))


def png(side):
    """A square of random colours."""
    rows = b"".join(b"\0" + os.urandom(side * 3) for _ in range(side))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def wait_until(what, done, timeout_s):
    """Polls, since all that is waited for are other processes; the result of `done` that is true."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        result = done()
        if result:
            return result
        time.sleep(0.1)
    raise TimeoutError(f"{what}: not within {timeout_s} s")


class Monitored(Processes):
    def __init__(self, bin_dir, helm, prometheus, model):
        super().__init__(bin_dir)
        self.prometheus, self.model = prometheus, model
        # One of the model's width, with random weights.
        self.tower = self.folder / "tower.gguf"
        subprocess.run([self.bin / "synthetic_tower", self.tower], check=True)
        self.grpc = {role: free_port() for role in ROLES}
        self.metrics = {role: free_port() for role in ROLES}
        self.http = free_port()
        self.prometheus_port = free_port()
        # One core each, as the machine of a test has few.
        self.release = Release(helm, [CHART / "ci" / "hostpath-values.yaml"],
                               ["encode.replicas=1", "encode.threads=1", "encode.memory=16MiB"] +
                               [f"{role}.{key}" for role in ("prefill", "decode")
                                for key in ("threads=1", "kvMemory=64MiB")])

    def start(self):
        (self.folder / "token").write_text("a-token-of-this-test-alone")
        for role in ROLES:
            self.start_role(role)
        self.start_prometheus()
        self.await_ready(self.router)

    @property
    def router(self):
        return f"127.0.0.1:{self.grpc['router']}"

    def start_role(self, role):
        """The chart's own configuration, moved to loopback and free ports by flags."""
        config = self.folder / f"{role}.yaml"
        more = CACHE if role == "router" else ""
        config.write_text(self.release.config_text(role) + more)
        command = [self.bin / f"trivium-{role}", "--config", config,
                   "--model", self.tower if role == "encode" else self.model,
                   "--cluster-token-file", self.folder / "token",
                   "--listen", f"127.0.0.1:{self.grpc[role]}",
                   "--metrics-listen", f"127.0.0.1:{self.metrics[role]}"]
        if role == "router":
            command += ["--http-listen", f"127.0.0.1:{self.http}", "--tower", self.tower]
            for worker in ROLES[1:]:
                command += ["--worker", f"{worker}=127.0.0.1:{self.grpc[worker]}"]
        else:
            command += ["--interface", "lo", "--transfer-port", str(TRANSFER_PORT)]
        self.spawn(role, *command)

    def start_prometheus(self):
        """deploy/prometheus as it is, but for ports, and with a second between two looks."""
        config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ROOT / "deploy/prometheus" / name) for name in config["rule_files"]]
        # It names this one in a comment.
        config["scrape_configs"][0]["static_configs"] += [{"targets": [], "labels": {"component": "encode"}}]
        for target in config["scrape_configs"][0]["static_configs"]:
            target["targets"] = [f"127.0.0.1:{self.metrics[target['labels']['component']]}"]
        path = self.folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        self.spawn("prometheus", f"{self.prometheus}/prometheus", f"--config.file={path}",
                   f"--storage.tsdb.path={self.folder}/tsdb",
                   f"--web.listen-address=127.0.0.1:{self.prometheus_port}")

    def load(self):
        """A little traffic, in the background until stop()."""
        self.spawn("load", self.bin / "trivium", "bench", "--router", self.router, "--requests", "100000",
                   "--concurrency", "3", "--prompt-tokens", "64", "--max-tokens", "16")
        # Behind another text each time, so that the picture's KV is of no use; every other picture is new, so that it
        # has to be encoded.
        known = PICTURE.read_bytes()
        self.is_over = threading.Event()

        def ask():
            for i in range(100000):
                if self.is_over.is_set():
                    return
                picture = known if i % 2 else png(16)
                self.ask_about(base64.b64encode(picture).decode(), f"{i}: what is this?")
        self.asker = threading.Thread(target=ask, daemon=True)
        self.asker.start()

    def ask_about(self, picture, text):
        parts = [{"type": "text", "text": text},
                 {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
        return post(f"http://127.0.0.1:{self.http}/v1/chat/completions",
                    {"messages": [{"role": "user", "content": parts}], "max_tokens": 2})

    def stop(self):
        if hasattr(self, "asker"):
            self.is_over.set()
            self.asker.join()
        super().stop()

    def query(self, expression):
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/query?" + urllib.parse.urlencode(
            {"query": expression})
        return json.loads(get(url))["data"]["result"]
