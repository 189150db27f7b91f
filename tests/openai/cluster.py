"""A router, a prefill and a decode worker as real processes on the loopback interface."""

import os
import pathlib
import random
import re
import socket
import subprocess
import tempfile
import time
import urllib.request

MODEL = os.environ["TRIVIUM_TEST_MODEL"]
READY_S, IDLE_S, END_S = 60, 30, 40


def free_port():
    """Below the range of outgoing ports, so that no client takes it by connecting to itself."""
    while True:
        port = random.randint(20000, 29999)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Cluster:
    def __init__(self, bin_dir):
        self.bin = pathlib.Path(bin_dir)
        self.logs = tempfile.TemporaryDirectory(prefix="trivium-openai-")
        self.processes = {}
        self.ports = {name: free_port() for name in ("prefill", "decode", "router", "http", "metrics")}
        at = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        kv = ("--kv-memory", "128MiB", "--threads", "1", "--numerics", "batch_invariant")
        self.start("prefill", "--listen", at["prefill"], *kv)
        self.start("decode", "--listen", at["decode"], "--metrics-listen", at["metrics"], *kv)
        self.start("router", "--listen", at["router"], "--http-listen", at["http"],
                   "--worker", "prefill=" + at["prefill"], "--worker", "decode=" + at["decode"])
        self.url = f"http://{at['http']}"
        try:
            subprocess.run([self.bin / "trivium", "wait-ready", "--router", at["router"],
                            "--timeout-s", str(READY_S)], check=True)
        except subprocess.CalledProcessError:
            self.stop()
            raise

    def start(self, role, *arguments):
        with open(os.path.join(self.logs.name, role + ".log"), "w") as log:
            self.processes[role] = subprocess.Popen(
                [self.bin / f"trivium-{role}", "--model", MODEL, *arguments], stdout=log, stderr=log)

    def get(self, url):
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()

    def metric(self, series, of_decode=False):
        page = self.get(f"http://127.0.0.1:{self.ports['metrics']}/metrics" if of_decode
                        else self.url + "/metrics")
        return float(re.search(rf"^trivium_{re.escape(series)} (\S+)$", page, re.MULTILINE)[1])

    def await_metric(self, series, holds, of_decode=False):
        """Fails when the value does not come to what `holds` wants."""
        deadline = time.monotonic() + IDLE_S
        while not holds(value := self.metric(series, of_decode)):
            assert time.monotonic() < deadline, f"{series} stays at {value}"
            time.sleep(0.05)

    def await_idle(self):
        self.await_metric('kv_blocks{state="used"}', lambda used: used == 0, of_decode=True)

    def stop(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.logs.cleanup()
