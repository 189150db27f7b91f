"""Trivium's processes on the loopback interface, for the tests and benchmarks in Python."""
import os
import pathlib
import random
import socket
import subprocess
import tempfile
import urllib.request

BUILT = pathlib.Path(__file__).resolve().parents[2] / 'build' / 'release' / 'bin'
READY_S, END_S = 60, 40
PORTS = range(20000, 22500)  # below those of outgoing connections, so that no client takes one by connecting to itself
reservations = []  # open until this process ends


def reserve(port):
    """False where this or another test was given the port; tests/e2e/process.cc binds the same address."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f'\0trivium-test-port-{port}')
    except OSError:
        held.close()
        return False
    reservations.append(held)
    return True


def free_port():
    """Nobody listened there a moment ago, and no other test is given it while this process lives."""
    while True:
        port = random.Random().choice(PORTS)
        if not reserve(port):
            continue
        with socket.socket() as probe:
            try:
                probe.bind(('127.0.0.1', port))
            except OSError:
                continue
        return port


def get(url, timeout_s=30):
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return answer.read().decode()


class Processes:
    """Started one by one and ended together. What they say goes to files in `folder`, which ends with them."""

    def __init__(self, bin_dir=BUILT):
        self.bin, self.processes = pathlib.Path(bin_dir), {}
        self.temporary = tempfile.TemporaryDirectory(prefix='trivium-')
        self.folder = pathlib.Path(self.temporary.name)

    def spawn(self, name, *command):
        with open(self.folder / f'{name}.log', 'w') as log:
            self.processes[name] = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)

    def logs(self, most=None):
        """What all have said; of each the last `most` characters."""
        return '\n'.join(f'--- {name}\n{(self.folder / f"{name}.log").read_text()[-(most or 0):]}' for name in self.processes)

    def await_ready(self, router, key=None):
        self.client('wait-ready', '--timeout-s', READY_S, router=router, key=key)

    def client(self, command, *arguments, router, key=None):
        """What `trivium` prints, run with the API key that this caller has."""
        environment = {**os.environ, 'TRIVIUM_API_KEY': key} if key else None
        return subprocess.run([self.bin / 'trivium', command, '--router', router, *map(str, arguments)], check=True,
                              stdout=subprocess.PIPE, text=True, env=environment).stdout

    def stop(self):
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.temporary.cleanup()


class Cluster(Processes):
    """A router and workers named prefill-0, prefill-1 … decode-0 …, all ready. `worker`, `prefill`, `decode`, `encode` and
    `router` are flags; `config` is the router's file, and `key` one that it takes. Encode workers have `tower`."""

    def __init__(self, model, worker=(), prefill=(), decode=(), router=(), config='', key=None, prefill_workers=1,
                 decode_workers=1, bin_dir=BUILT, encode=(), encode_workers=0, tower=None):
        super().__init__(bin_dir)
        self.model, self.key, self.ports, self.metrics_ports = model, key, {}, {}
        self.tower = tower
        workers = []
        for role, flags, count in (('prefill', prefill, prefill_workers), ('decode', decode, decode_workers),
                                   ('encode', encode, encode_workers)):
            for i in range(count):
                self.start(role, f'{role}-{i}', *worker, *flags)
                workers += ['--worker', f'{role}={self.address(f"{role}-{i}")}']
        (self.folder / 'router.yaml').write_text(config)
        self.http_port = free_port()
        self.url = f'http://127.0.0.1:{self.http_port}'
        self.start('router', 'router', '--config', self.folder / 'router.yaml', '--http-listen',
                   f'127.0.0.1:{self.http_port}', *workers, *router)
        try:
            self.await_ready(self.address('router'), key)
        except BaseException:
            print(self.logs(2000))
            self.stop()
            raise

    def address(self, name):
        return f'127.0.0.1:{self.ports[name]}'

    def start(self, role, name, *flags):
        self.ports[name], self.metrics_ports[name] = free_port(), free_port()
        model = self.tower if role == 'encode' else self.model
        self.spawn(name, self.bin / f'trivium-{role}', '--model', model, '--listen', self.address(name),
                   '--metrics-listen', f'127.0.0.1:{self.metrics_ports[name]}', *flags)

    def metrics(self, name):
        return get(f'http://127.0.0.1:{self.metrics_ports[name]}/metrics')

    def ask(self, command, *arguments):
        """`trivium` with the key that the cluster was made with."""
        return self.client(command, *arguments, router=self.address('router'), key=self.key)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
