"""The Dockerfile installs for each service the packages that its binary links to, and no others.

    dockerfile_test.py BIN_DIR

Docker itself is not needed, Debian's dpkg and g++ are.
"""

import os
import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN_DIR = pathlib.Path(sys.argv[1])
BINARIES = {"router": "trivium-router", "encode": "trivium-encode", "prefill": "trivium-prefill",
            "decode": "trivium-decode", "cli": "trivium"}
IN_EVERY_IMAGE = {"libc6", "libgcc-s1", "libstdc++6"}  # apt itself needs them


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def stages():
    """name -> (what it is built from, its lines), continued lines joined."""
    found, name = {}, None
    text = (ROOT / "deploy/docker/Dockerfile").read_text()
    for line in re.sub(r"\\\n", " ", text).splitlines():
        start = re.fullmatch(r"FROM (\S+) AS (\S+)", line)
        if start:
            name = start.group(2)
            found[name] = (start.group(1), [])
        elif name and line and not line.startswith("#"):
            found[name][1].append(line)
    return found


def lines_of(stage):
    base, lines = stages()[stage]
    return (lines_of(base) if base in stages() else []) + lines


def installed_in(stage):
    packages = set()
    for line in lines_of(stage):
        for words in re.findall(r"apt-get install -y --no-install-recommends ([^&]*)", line):
            packages.update(words.split())
    return packages


def linked_by(binary):
    """The packages of the libraries that the file itself names."""
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", binary))
    paths = dict(re.findall(r"(\S+) => (/\S+)", output("ldd", binary)))
    packages = set()
    for library in needed:
        if library in paths:  # all but the loader
            # Found under /lib or /usr/lib, the same place by two names.
            path = os.path.realpath(paths[library])
            owner = subprocess.run(["dpkg", "-S", path], capture_output=True, text=True).stdout
            owner = owner or output("dpkg", "-S", path.removeprefix("/usr"))
            packages.add(owner.split(":")[0])
    return packages


class Dockerfile(unittest.TestCase):
    def test_packages_are_those_that_the_binary_links_to(self):
        for stage, binary in BINARIES.items():
            with self.subTest(stage=stage):
                self.assertEqual(installed_in(stage), linked_by(BIN_DIR / binary) - IN_EVERY_IMAGE)

    def test_each_image_runs_its_binary_as_nobody_special(self):
        for stage, binary in BINARIES.items():
            with self.subTest(stage=stage):
                lines = lines_of(stage)
                self.assertIn(f"COPY --from=build /src/build/release/bin/{binary} /usr/local/bin/", lines)
                self.assertEqual(lines[-1], f'ENTRYPOINT ["{binary}"]')
                self.assertEqual([l for l in lines if l.startswith("USER")], ["USER 65532:65532"])
                built = next(l for l in lines_of("build") if l.startswith("RUN deploy/build"))
                self.assertIn(binary, built.split("&&")[0].split())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
