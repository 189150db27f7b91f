"""Router, prefill and decode worker as processes of this machine, for benchmarks of real requests."""
import os
import subprocess

BIN = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'build', 'release', 'bin')


class Cluster:
    """Takes the ports from `port` on: router, prefill, decode, then those that the extra flags name. What the
    processes say goes to the file `log`. Both workers get `worker`, the flags of both."""

    def __init__(self, model, port, log, worker=(), prefill=(), decode=(), router=()):
        self.port, self.log, self.processes = port, log, []
        for role, offset, flags in (('prefill', 1, prefill), ('decode', 2, decode)):
            self.start(f'trivium-{role}', '--listen', self.address(offset), '--model', model, *worker, *flags)
        self.start('trivium-router', '--listen', self.address(0), '--model', model, '--worker',
                   f'prefill={self.address(1)}', '--worker', f'decode={self.address(2)}', *router)

    def address(self, offset):
        return f'127.0.0.1:{self.port + offset}'

    def start(self, name, *arguments):
        self.processes.append(subprocess.Popen([os.path.join(BIN, name), *arguments], stdout=self.log, stderr=self.log))

    def client(self, command, *arguments, key=None):
        """What `trivium` prints, run with the API key that this caller has."""
        environment = {**os.environ, 'TRIVIUM_API_KEY': key} if key else None
        return subprocess.run([os.path.join(BIN, 'trivium'), command, '--router', self.address(0), *arguments],
                              check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
