"""Router, prefill and decode of the rendered chart, and a Prometheus that scrapes them, as processes on loopback."""

import json
import pathlib
import socket
import subprocess
import time
import urllib.parse
import urllib.request

import yaml

from chart import CHART, ROLES, ROOT, Release

TRANSFER_PORT = 22500


def free_port():
    """Below the range of outgoing ports; nobody listened there a moment ago."""
    for port in range(21000 + time.time_ns() // 1000 % 1000, 22400):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in free_port.given:
            free_port.given.add(port)
            return port
    raise RuntimeError("no free port")


free_port.given = set()


def get(url, body=None):
    """The text at the URL; with a body, what a POST of it as JSON gives."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def wait_until(what, done, timeout_s):
    """Polls, since all that is waited for are other processes; the result of `done` that is true."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        result = done()
        if result:
            return result
        time.sleep(0.1)
    raise TimeoutError(f"{what}: not within {timeout_s} s")


class Cluster:
    def __init__(self, folder, bin_dir, helm, prometheus, model):
        self.folder, self.bin, self.prometheus = pathlib.Path(folder), pathlib.Path(bin_dir), prometheus
        self.processes = []
        self.grpc = {role: free_port() for role in ROLES}
        self.metrics = {role: free_port() for role in ROLES}
        self.http = free_port()
        self.prometheus_port = free_port()
        self.model = model
        # One core each, as the machine of a test has few.
        self.release = Release(helm, [CHART / "ci" / "hostpath-values.yaml"],
                               [f"{role}.{key}" for role in ("prefill", "decode")
                                for key in ("threads=1", "kvMemory=64MiB")])

    def start(self):
        (self.folder / "token").write_text("a-token-of-this-test-alone")
        for role in ROLES:
            self.start_role(role)
        self.start_prometheus()
        subprocess.run([self.bin / "trivium", "wait-ready", "--router", self.router, "--timeout-s", "60"],
                       check=True, stdout=subprocess.DEVNULL)

    @property
    def router(self):
        return f"127.0.0.1:{self.grpc['router']}"

    def start_role(self, role):
        """The chart's own configuration, moved to loopback and free ports by flags."""
        config = self.folder / f"{role}.yaml"
        config.write_text(self.release.config_text(role))
        command = [self.bin / f"trivium-{role}", "--config", config, "--model", self.model,
                   "--cluster-token-file", self.folder / "token",
                   "--listen", f"127.0.0.1:{self.grpc[role]}",
                   "--metrics-listen", f"127.0.0.1:{self.metrics[role]}"]
        if role == "router":
            command += ["--http-listen", f"127.0.0.1:{self.http}"]
            for worker in ("prefill", "decode"):
                command += ["--worker", f"{worker}=127.0.0.1:{self.grpc[worker]}"]
        else:
            command += ["--interface", "lo", "--transfer-port", str(TRANSFER_PORT)]
        self.spawn(role, command)

    def start_prometheus(self):
        """deploy/prometheus as it is, but for ports, and with a second between two looks."""
        config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ROOT / "deploy/prometheus" / name) for name in config["rule_files"]]
        for target in config["scrape_configs"][0]["static_configs"]:
            target["targets"] = [f"127.0.0.1:{self.metrics[target['labels']['component']]}"]
        path = self.folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        self.spawn("prometheus", [f"{self.prometheus}/prometheus", f"--config.file={path}",
                                  f"--storage.tsdb.path={self.folder}/tsdb",
                                  f"--web.listen-address=127.0.0.1:{self.prometheus_port}"])

    def spawn(self, name, command):
        with open(self.folder / f"{name}.log", "wb") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def load(self):
        """A little traffic, in the background until stop()."""
        self.processes.append(subprocess.Popen(
            [self.bin / "trivium", "bench", "--router", self.router, "--requests", "100000",
             "--concurrency", "3", "--prompt-tokens", "64", "--max-tokens", "16"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def query(self, expression):
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/query?" + urllib.parse.urlencode(
            {"query": expression})
        return json.loads(get(url))["data"]["result"]

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def logs(self):
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))
