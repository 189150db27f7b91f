"""The chart is what Kubernetes takes, its parts fit together, and the real binaries take its configuration.

    chart_test.py BIN_DIR HELM
"""

import base64
import http.server
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

import kubernetes_validate
import yaml

from chart import CHART, NAMESPACE, ROOT, Release
from fake_cluster import FakeCluster

BIN_DIR, HELM = pathlib.Path(sys.argv[1]), sys.argv[2]
KUBERNETES = ("1.35", "1.36", "1.37")
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
MINIMAL = CHART / "ci" / "hostpath-values.yaml"
LOADED = {path.name.removesuffix("-values.yaml"): Release(HELM, [path]) for path in VALUES}


def selects(selector, labels):
    """Whether a LabelSelector with In expressions, or a Service's plain map, admits the labels."""
    plain = selector.get("matchLabels", {}) if "matchLabels" in selector else {
        key: value for key, value in selector.items() if key != "matchExpressions"}
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in plain.items())


def port_of(address):
    return int(address.rsplit(":", 1)[1])


class Rendered(unittest.TestCase):
    def each(self):
        for name, release in LOADED.items():
            with self.subTest(values=name):
                yield release

    def test_lint_finds_nothing(self):
        for values in [[]] + [["--values", str(path)] for path in VALUES]:
            done = subprocess.run([HELM, "lint", "--strict", str(CHART), *values],
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_object_is_valid(self):
        for release in self.each():
            for version in KUBERNETES:
                for item in release.objects.values():
                    kubernetes_validate.validate(item, version, strict=True)

    def test_the_validator_is_awake(self):
        broken = Release(HELM, [MINIMAL]).workload("decode")
        broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 3
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, KUBERNETES[-1], strict=True)

    def test_selectors_choose_their_role_alone(self):
        for release in self.each():
            labels = {role: release.pod(role)["metadata"]["labels"] for role in release.roles}
            for role in release.roles:
                chosen = {
                    "workload": release.workload(role)["spec"]["selector"],
                    "service": release.of_role("Service", role)["spec"]["selector"],
                    "budget": release.of_role("PodDisruptionBudget", role)["spec"]["selector"],
                }
                for what, selector in chosen.items():
                    picked = [other for other in release.roles if selects(selector, labels[other])]
                    self.assertEqual(picked, [role], what)

    def test_references_lead_somewhere(self):
        for release in self.each():
            for role in release.roles:
                spec = release.pod(role)["spec"]
                self.assertIn(("ServiceAccount", spec["serviceAccountName"]), release.objects)
                volumes = {volume["name"]: volume for volume in spec["volumes"]}
                for claim in release.workload(role)["spec"].get("volumeClaimTemplates", []):
                    volumes[claim["metadata"]["name"]] = claim
                containers = spec["containers"] + spec.get("initContainers", [])
                for mount in (m for c in containers for m in c["volumeMounts"]):
                    self.assertIn(mount["name"], volumes)
                self.assertIn(("ConfigMap", volumes["config"]["configMap"]["name"]), release.objects)
                secret = volumes["token"]["secret"]["secretName"]
                if secret != "shared-token":
                    self.assertIn(("Secret", secret), release.objects)
                if role != "router":
                    service = release.workload(role)["spec"]["serviceName"]
                    headless = release.objects[("Service", service)]["spec"]
                    self.assertEqual(headless["clusterIP"], "None")

    def test_pods_run_with_no_privilege(self):
        for release in self.each():
            for role in release.roles:
                spec = release.pod(role)["spec"]
                self.assertFalse(spec["automountServiceAccountToken"])
                self.assertTrue(spec["securityContext"]["runAsNonRoot"])
                self.assertEqual(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault")
                for container in spec["containers"] + spec.get("initContainers", []):
                    security = container["securityContext"]
                    self.assertTrue(security["readOnlyRootFilesystem"])
                    self.assertFalse(security["allowPrivilegeEscalation"])
                    self.assertEqual(security["capabilities"], {"drop": ["ALL"]})

    def test_worker_list_is_the_pods_of_the_sets(self):
        for release in self.each():
            workers = yaml.safe_load(release.config_text("router"))["workers"]
            expected = []
            for role in release.roles[1:]:
                workload = release.workload(role)
                domain = workers[0]["address"].split(".svc.")[1].rsplit(":", 1)[0]
                port = {p["name"]: p["containerPort"] for p in release.container(role)["ports"]}["grpc"]
                for i in range(workload["spec"]["replicas"]):
                    host = f"{workload['metadata']['name']}-{i}.{workload['spec']['serviceName']}"
                    expected.append({"role": role,
                                     "address": f"{host}.{NAMESPACE}.svc.{domain}:{port}"})
            self.assertEqual(workers, expected)

    def test_what_processes_read_at_their_start_restarts_them(self):
        def sums(setting):
            release = Release(HELM, [MINIMAL], [setting])
            return {role: release.pod(role)["metadata"]["annotations"]["checksum/config"]
                    for role in release.roles}

        def restarted(before, after):
            one, two = sums(before), sums(after)
            return [role for role in one if one[role] != two[role]]
        self.assertEqual(restarted("decode.replicas=1", "decode.replicas=2"), ["router"])
        token = "clusterToken.value=0123456789abcde"
        self.assertEqual(restarted(token + "f", token + "g"), ["router", "prefill", "decode"])
        self.assertEqual(restarted(token + "f", token + "f"), [])

    def test_a_model_must_be_named_once(self):
        for settings in ([], ["model.hostPath=/m", "model.existingClaim=c"]):
            with self.assertRaisesRegex(ValueError, "exactly one of model.existingClaim"):
                Release(HELM, settings=settings)
        with self.assertRaisesRegex(ValueError, "model.url needs model.sha256"):
            Release(HELM, settings=["model.url=https://models.example/m"])
        with self.assertRaisesRegex(ValueError, "with model.url, encode.tower.url is needed too"):
            Release(HELM, [CHART / "ci" / "url-values.yaml"], ["encode.tower.url="])

    def test_the_encode_stage_is_off_unless_asked_for(self):
        self.assertEqual(LOADED["hostpath"].roles, ["router", "prefill", "decode"])
        self.assertNotIn("pictures", yaml.safe_load(LOADED["hostpath"].config_text("router")))
        self.assertNotIn("pictures", yaml.safe_load(LOADED["hostpath"].config_text("prefill")))
        release = LOADED["claim"]
        self.assertEqual(release.roles, ["router", "prefill", "decode", "encode"])
        configs = {role: yaml.safe_load(release.config_text(role)) for role in release.roles}
        self.assertEqual(configs["encode"]["model"]["path"], configs["router"]["pictures"]["tower"])
        self.assertEqual((configs["prefill"]["pictures"], configs["encode"]["pictures"]),
                         ({"memory_bytes": "128MiB"}, {"memory_bytes": "1GiB"}))
        self.assertNotIn("pictures", configs["decode"])

    def test_each_role_fetches_what_it_reads(self):
        fetched = {role: {e["value"] for c in LOADED["url"].pod(role)["spec"]["initContainers"]
                          for e in c["env"] if e["name"] == "FILE"} for role in LOADED["url"].roles}
        model, tower = "/models/model.gguf", "/models/towers/mmproj.gguf"
        self.assertEqual(fetched, {"router": {model, tower}, "prefill": {model}, "decode": {model},
                                   "encode": {tower}})

    def test_the_transfer_ports_are_enough(self):
        Release(HELM, [MINIMAL], ["transfer.portCount=16", "decode.replicas=11"])
        with self.assertRaisesRegex(ValueError, "enough for 11 peers .* decode.replicas is 12"):
            Release(HELM, [MINIMAL], ["transfer.portCount=16", "decode.replicas=12"])
        with self.assertRaisesRegex(ValueError, "enough for 5 peers .* decode.replicas is 6"):
            Release(HELM, [MINIMAL], ["transfer.portCount=16", "decode.replicas=6", "encode.replicas=1"])
        with self.assertRaisesRegex(ValueError, "beyond port 65535"):
            Release(HELM, [MINIMAL], ["transfer.port=65500"])

    def test_a_disk_has_room_for_its_file(self):
        for role, file_mib, storage_class in (("prefill", 64 << 10, "fast"), ("decode", 500, None)):
            (claim,) = LOADED["claim"].workload(role)["spec"]["volumeClaimTemplates"]
            asked = re.fullmatch(r"(\d+)Mi", claim["spec"]["resources"]["requests"]["storage"])
            self.assertGreater(int(asked[1]), file_mib * 1.05)
            self.assertLess(int(asked[1]), file_mib * 1.2)
            self.assertEqual(claim["spec"].get("storageClassName"), storage_class)
        with self.assertRaisesRegex(ValueError, "prefill.kvDisk.size needs prefill.kvDisk.keySecret"):
            Release(HELM, [MINIMAL], ["prefill.kvDisk.size=1GiB"])

    def test_values_are_checked(self):
        for setting, where in (("decode.replicas=0", "decode/replicas"), ("model.fil=x", "model"),
                               ("clusterToken.value=short", "clusterToken/value"),
                               ("prefill.kvMemory=1GB", "prefill/kvMemory"),
                               ("decode.kvDisk.size=1GB", "decode/kvDisk/size"),
                               ("decode.admission=half", "decode/admission"),
                               ("prefill.admission=full", "prefill"),
                               ("decode.picturesMemory=1GiB", "decode"),
                               ("encode.replicas=-1", "encode/replicas"),
                               ("encode.kvMemory=1GiB", "encode"), ("encode.tower.file=/m", "encode/tower/file")):
            with self.assertRaisesRegex(ValueError, where):
                Release(HELM, [MINIMAL], [setting])

    def test_notes_name_the_doors(self):
        for name, release in LOADED.items():
            done = subprocess.run([HELM, "install", release.name, CHART, "--dry-run=client", "--namespace",
                                   NAMESPACE, "--values", CHART / "ci" / f"{name}-values.yaml"],
                                  capture_output=True, text=True, check=True)
            notes = done.stdout.split("\nNOTES:\n")[1]
            service = release.of_role("Service", "router")
            doors = {str(port["port"]) for port in service["spec"]["ports"]}
            forwarded = re.search(r"port-forward service/(\S+) (\d+):(\d+) (\d+):(\d+)\n", notes)
            self.assertEqual(forwarded[1], service["metadata"]["name"])
            self.assertEqual((forwarded[2], forwarded[4]), (forwarded[3], forwarded[5]))
            self.assertEqual(set(forwarded.groups()[1:]), doors)
            self.assertEqual(set(re.findall(r"127\.0\.0\.1:(\d+)", notes)), doors)
            host = f"{service['metadata']['name']}.{NAMESPACE}.svc.{'k8s.example' if name == 'url' else 'cluster.local'}"
            self.assertIn(f"http://{host}:{forwarded[4]}/v1 ", notes)
            self.assertEqual("Both doors are open" in notes, name != "claim")

    def test_tokens(self):
        drawn = [Release(HELM, [MINIMAL]) for _ in range(2)]
        tokens = {release.all("Secret")[0]["data"]["token"] for release in drawn}
        self.assertTrue(all(len(base64.b64decode(token)) == 48 for token in tokens))
        self.assertEqual(len(tokens), 2, "a drawn token is never a constant")
        self.assertEqual(LOADED["claim"].all("Secret"), [])
        self.assertNotIn("0123456789abcdef", str([LOADED["url"].config_text(r) for r in LOADED["url"].roles]))

    def test_an_upgrade_keeps_the_token(self):
        objects = LOADED["hostpath"].objects.values()
        secret = LOADED["hostpath"].all("Secret")[0]["metadata"]["name"]
        old = "a-token-drawn-by-the-first-install"
        for there, settings, expected in (
                ({(NAMESPACE, secret): {"token": old}}, [], old),
                ({(NAMESPACE, secret): {"token": old}}, ["clusterToken.value=" + "n" * 16], "n" * 16),
                ({("elsewhere", secret): {"token": old}}, [], None)):
            with FakeCluster(objects, there) as server:
                release = Release(HELM, [MINIMAL], settings, server=server)
            token = base64.b64decode(release.all("Secret")[0]["data"]["token"]).decode()
            self.assertTrue(token == expected if expected else len(token) == 48, token)


class Binaries(unittest.TestCase):
    """What the processes make of their rendered files."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.path = pathlib.Path(cls.folder.name)
        (cls.path / "token").write_text("0123456789abcdef\n")
        (cls.path / "model").write_text("")
        (cls.path / "master").write_bytes(bytes(range(32)))
        (cls.path / "master").chmod(0o600)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def settings(self, release, role):
        """The complete configuration as the binary prints it."""
        config = self.path / f"{role}.yaml"
        config.write_text(release.config_text(role))
        command = [BIN_DIR / f"trivium-{role}", "--config", config, "--check-config", "--print-config",
                   "--cluster-token-file", self.path / "token", "--model", self.path / "model"]
        if role == "router":
            command += ["--master-key-file", self.path / "master"]
            command += ["--tower", self.path / "model"] if "encode" in release.roles else []
        elif role != "encode":
            command += ["--kv-disk-key-file", self.path / "master"]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return yaml.safe_load(done.stdout)

    def each(self):
        for name, release in LOADED.items():
            for role in release.roles:
                with self.subTest(values=name, role=role):
                    yield release, role, self.settings(release, role)

    def test_files_lie_where_the_pod_mounts_them(self):
        for release, role, _ in self.each():
            config = yaml.safe_load(release.config_text(role))
            mounts = {m["mountPath"] for m in release.container(role)["volumeMounts"]}
            self.assertIn(os.path.dirname(config["server"]["cluster_token_file"]), mounts)
            master = config.get("tenancy", {}).get("master_key_file")
            self.assertEqual("/etc/trivium/master" in mounts, master is not None)
            if master:
                self.assertEqual((role, os.path.dirname(master)), ("router", "/etc/trivium/master"))
            tiers = config.get("engine", {}).get("kv_tiers", {})
            self.assertEqual("/var/lib/trivium" in mounts, bool(tiers))
            for field in ("disk_path", "disk_key_file") if tiers else ():
                self.assertIn(os.path.dirname(tiers[field]), mounts)
            for path in (config["model"]["path"], config.get("pictures", {}).get("tower", "/models/")):
                self.assertTrue(path.startswith("/models/"))
            self.assertIn("/models", mounts)
            flag, path = release.container(role)["args"]
            self.assertEqual((flag, os.path.basename(path)), ("--config", "config.yaml"))
            self.assertIn(os.path.dirname(path), mounts)

    def test_ports_are_those_that_it_listens_on(self):
        for release, role, config in self.each():
            server = config["server"]
            listens = {"grpc": port_of(server["listen"]), "metrics": port_of(server["metrics_listen"])}
            if role == "router":
                listens["http"] = port_of(config["http"]["listen"])
            declared = {p["name"]: p["containerPort"] for p in release.container(role)["ports"]}
            self.assertEqual(declared, listens)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                self.assertEqual(release.container(role)[probe]["grpc"]["port"], listens["grpc"])
            for port in release.of_role("Service", role)["spec"]["ports"]:
                self.assertEqual(port["port"], listens[port["targetPort"]])

    def test_readiness_asks_for_a_service_that_the_role_has(self):
        protos = "\n".join(p.read_text() for p in (ROOT / "proto/trivium/v1").glob("*.proto"))
        services = {f"trivium.v1.{name}" for name in re.findall(r"^service (\w+)", protos, re.M)}
        for release, role, _ in self.each():
            self.assertIn(release.container(role)["readinessProbe"]["grpc"]["service"], services)

    def test_network_policy_admits_what_is_needed_and_no_more(self):
        for release, role, config in self.each():
            if not release.all("NetworkPolicy"):
                continue
            policy = release.of_role("NetworkPolicy", role)["spec"]
            self.assertEqual(policy["policyTypes"], ["Ingress"])
            labels = {other: release.pod(other)["metadata"]["labels"] for other in release.roles}
            self.assertTrue(selects(policy["podSelector"], labels[role]))
            admitted = {}  # first port -> who
            for rule in policy["ingress"]:
                peers = [peer["podSelector"] for peer in rule.get("from", []) if "podSelector" in peer]
                who = {other for other in release.roles for peer in peers if selects(peer, labels[other])}
                for port in rule["ports"]:
                    admitted[port["port"]] = (port.get("endPort", port["port"]), who)
            expected = {port_of(config["server"]["metrics_listen"]): set()}
            expected[port_of(config["server"]["listen"])] = set() if role == "router" else {"router"}
            if role == "router":
                expected[port_of(config["http"]["listen"])] = set()
            expected = {port: (port, who) for port, who in expected.items()}
            if role != "router":
                first = config["transfer"]["port"]
                expected[first] = (first + config["transfer"]["port_count"] - 1,
                                   set(release.roles[1:]))
            self.assertEqual(admitted, expected)

    def test_a_pod_outlives_its_drain(self):
        for release, role, config in self.each():
            hook = release.container(role).get("lifecycle", {}).get("preStop", {}).get("sleep", {})
            # Calls cancelled at the end of the drain have ten seconds, the router's streams ten more.
            needed = config["server"]["drain_timeout_s"] + 20 + hook.get("seconds", 0)
            self.assertGreater(release.pod(role)["spec"]["terminationGracePeriodSeconds"], needed)

    def test_transfers_reach_other_pods(self):
        for _, role, config in self.each():
            if role != "router":
                self.assertNotEqual(config["transfer"]["interface"], "lo")
                self.assertEqual(config["transfer"]["transports"], "tcp,self")

    def test_own_settings_win_and_further_ones_arrive(self):
        prefill = self.settings(LOADED["claim"], "prefill")["engine"]
        self.assertEqual((prefill["threads"], prefill["step_tokens"], prefill["numerics"],
                          prefill["kv_memory_bytes"]), (8, 1024, "batch_invariant", 16 << 30))
        router = self.settings(LOADED["claim"], "router")
        self.assertEqual((router["queue_timeout_s"], router["server"]["log_level"]), (10, "info"))
        self.assertEqual((router["http"]["listen"], router["http"]["connections_max"],
                          router["http"]["idle_timeout_s"]), ("0.0.0.0:7480", 5000, 620))
        self.assertEqual([tenant["id"] for tenant in router["tenancy"]["tenants"]], ["guests"])
        admissions = [self.settings(LOADED[name], "decode")["engine"]["admission"] for name in LOADED]
        self.assertEqual(dict(zip(LOADED, admissions)),
                         {"claim": "full", "hostpath": "expected", "url": "expected"})


class FetchModel(unittest.TestCase):
    """The init container's own script, run against a real server."""

    def fetch(self, folder, sha256):
        (container,) = LOADED["url"].pod("decode")["spec"]["initContainers"]
        self.assertEqual(container["command"], ["/bin/sh", "-ec"])
        env = {"PATH": os.environ["PATH"], "URL": f"http://127.0.0.1:{self.port}/file",
               "SHA256": sha256, "FILE": f"{folder}/sub/model.gguf"}
        self.assertEqual({e["name"] for e in container["env"]} | {"PATH"}, set(env))
        return subprocess.run([*container["command"], *container["args"]], env=env,
                              capture_output=True, text=True)

    def setUp(self):
        test = self
        test.requests = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                test.requests += 1
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"abc")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    @unittest.skipUnless(shutil.which("curl"), "no curl here")
    def test_fetches_once_and_believes_nothing(self):
        right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        with tempfile.TemporaryDirectory() as folder:
            wrong = self.fetch(folder, "0" * 64)
            self.assertEqual(wrong.returncode, 1)
            self.assertIn("has another SHA-256", wrong.stdout)
            self.assertFalse(os.path.exists(f"{folder}/sub/model.gguf"))
            for _ in range(2):
                done = self.fetch(folder, right)
                self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(pathlib.Path(folder, "sub/model.gguf").read_bytes(), b"abc")
            self.assertEqual(self.requests, 2, "what is there and right is not fetched again")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
