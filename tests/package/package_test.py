"""What `cmake --install` puts under a prefix, and what deploy/package puts into a .deb, is complete and can be used.

    package_test.py BUILD_DIR
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(sys.argv[1]).resolve()
ROLES = ["router", "encode", "prefill", "decode"]
PROGRAMS = ["trivium"] + [f"trivium-{role}" for role in ROLES]


def output(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


class InstalledTree(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.prefix = pathlib.Path(cls.temporary.name) / "prefix"
        output("cmake", "--install", BUILD, "--prefix", cls.prefix)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def test_the_programs_run_from_there_and_name_no_folder_of_the_build(self):
        for program in PROGRAMS:
            with self.subTest(program=program):
                path = self.prefix / "bin" / program
                self.assertIn(program, output(path, "--help"))
                self.assertNotRegex(output("readelf", "-d", path), "RPATH|RUNPATH")
                self.assertNotIn(os.fsencode(ROOT), path.read_bytes(), "the place of a check that failed")

    def test_the_example_configurations_are_accepted_and_fit_together(self):
        with tempfile.NamedTemporaryFile(suffix=".gguf") as model:
            for role in ROLES:
                output(self.prefix / f"bin/trivium-{role}", "--config", self.prefix / f"etc/trivium/{role}.yaml",
                       "--model", model.name, "--check-config")
        router = (self.prefix / "etc/trivium/router.yaml").read_text()
        for role in ROLES[1:]:
            worker = (self.prefix / f"etc/trivium/{role}.yaml").read_text()
            address = re.search(r"^  listen: (\S+)", worker, re.M).group(1)
            self.assertIn(f'{{address: "{address}", role: {role}}}', router)

    def test_the_units_start_what_is_installed(self):
        for role in ROLES:
            unit = self.prefix / f"lib/systemd/system/trivium-{role}.service"
            program, flag, config = re.search(r"^ExecStart=(.*)$", unit.read_text(), re.M).group(1).split()
            self.assertEqual(program, str(self.prefix / f"bin/trivium-{role}"))
            self.assertTrue(os.access(program, os.X_OK))
            self.assertEqual((flag, pathlib.Path(config).exists()), ("--config", True))
            if shutil.which("systemd-analyze"):
                subprocess.run(["systemd-analyze", "--man=no", "verify", unit], check=True, capture_output=True)

    def test_a_configuration_that_was_changed_is_kept(self):
        config = self.prefix / "etc/trivium/router.yaml"
        before = config.read_text()
        config.write_text("changed")
        output("cmake", "--install", BUILD, "--prefix", self.prefix)
        self.assertEqual(config.read_text(), "changed")
        config.write_text(before)

    def test_documentation_is_there(self):
        for file in ["LICENSE", "README.md", "docs/architecture.md"]:
            self.assertTrue((self.prefix / "share/doc/trivium" / file).stat().st_size > 0, file)
        share = self.prefix / "share"
        for file in ["man/man1/trivium.1", "bash-completion/completions/trivium", "zsh/site-functions/_trivium",
                     "fish/vendor_completions.d/trivium.fish"]:
            self.assertIn("wait-ready", (share / file).read_text().replace("\\-", "-"), file)
        output("bash", "-n", share / "bash-completion/completions/trivium")


class DebianPackage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.deb = output("env", "DEBFULLNAME=Ann / Bob & Co", "DEBEMAIL=ann@example.org",
                         ROOT / "deploy/package").splitlines()[-1]

    def test_it_depends_on_what_the_programs_link_to(self):
        depends = {d.split()[0] for d in output("dpkg-deb", "-f", self.deb, "Depends").split(", ")}
        dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
        linked = set(re.findall(r"\blib[a-z+-]+[\d.]+(?:-[a-z\d]+)*\b", re.sub(r"(?s)^.*?AS base", "", dockerfile)))
        named = {d.removesuffix("-fmt9") for d in depends} - {"libc6", "libgcc-s1", "libstdc++6"}
        self.assertEqual(named, linked)

    def test_its_maintainer_is_who_packs_it(self):
        self.assertEqual(output("dpkg-deb", "-f", self.deb, "Maintainer"), "Ann / Bob & Co <ann@example.org>\n")

    def test_its_version_is_the_projects(self):
        project = re.search(r"project\(trivium VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
        self.assertEqual(output("dpkg-deb", "-f", self.deb, "Version").strip(), project)

    def test_files_belong_to_root_and_the_configuration_to_the_administrator(self):
        files = {}
        for line in output("dpkg-deb", "-c", self.deb).splitlines():
            mode, owner, _, _, _, path = line.split(None, 5)
            files[path] = mode
            self.assertEqual(owner, "root/root", path)
            self.assertEqual(mode[8], "-", f"{path}: others can write")
        for program in PROGRAMS:
            self.assertEqual(files[f"./usr/bin/{program}"], "-rwxr-xr-x")
        for file in ["doc/trivium/copyright", "man/man1/trivium.1.gz"]:
            self.assertEqual(files[f"./usr/share/{file}"], "-rw-r--r--")
        with tempfile.TemporaryDirectory() as control:
            output("dpkg-deb", "-e", self.deb, control)
            conffiles = pathlib.Path(control, "conffiles").read_text().split()
            self.assertEqual(conffiles, sorted(f"/etc/trivium/{role}.yaml" for role in ROLES))
            for script in ["postinst", "prerm"]:
                output("sh", "-n", pathlib.Path(control, script))
        with tempfile.TemporaryDirectory() as tree:
            output("dpkg-deb", "-x", self.deb, tree)
            unit = pathlib.Path(tree, "usr/lib/systemd/system/trivium-router.service").read_text()
            self.assertIn("ExecStart=/usr/bin/trivium-router --config /etc/trivium/router.yaml\n", unit)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
