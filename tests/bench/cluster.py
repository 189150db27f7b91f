"""Router, prefill and decode worker as processes of this machine, for benchmarks of real requests."""
import os
import subprocess

BIN = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'build', 'release', 'bin')


class Cluster:
    """Takes the ports from `port` on: router, prefill, decode, then those that the extra flags name. What the
    processes say goes to the file `log`. All workers get `worker`, the flags of both roles."""

    def __init__(self, model, port, log, worker=(), prefill=(), decode=(), router=(), prefill_workers=1, decode_workers=1):
        self.port, self.log, self.processes = port, log, []
        workers = []
        for role, flags in [('prefill', prefill)] * prefill_workers + [('decode', decode)] * decode_workers:
            address = self.address(1 + len(workers) // 2)
            self.start(f'trivium-{role}', '--listen', address, '--model', model, *worker, *flags)
            workers += ['--worker', f'{role}={address}']
        self.start('trivium-router', '--listen', self.address(0), '--model', model, *workers, *router)

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
