"""Every expression of the dashboard and of the rules gives data on a running cluster; every alert can fire.

    dashboards_test.py BIN_DIR HELM PROMETHEUS_DIR
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

import yaml

from chart import CHART, ROLES, ROOT, Release
from cluster import get
from monitored import TRANSFER_PORT, Monitored, post, wait_until

BIN_DIR, HELM, PROMETHEUS = sys.argv[1:4]
CONFIGS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy/grafana/trivium.json").read_text())
RULES = [rule for group in yaml.safe_load((CONFIGS / "trivium.rules.yml").read_text())["groups"]
         for rule in group["rules"]]
DATA_TIMEOUT_S = 45


def promtool(*arguments, **options):
    done = subprocess.run([f"{PROMETHEUS}/promtool", *map(str, arguments)], capture_output=True,
                          text=True, **options)
    return done.returncode, done.stdout + done.stderr


def dashboard_expressions():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"].replace("$__rate_interval", "30s")


def selectors(expression):
    """The vector selectors in an expression: metric names with their matchers."""
    return re.findall(r"(?:trivium[a-z0-9_:]*|\bup)(?:\{[^}]*\})?", expression)


class Files(unittest.TestCase):
    def check(self, *arguments, **options):
        code, output = promtool(*arguments, **options)
        self.assertEqual(code, 0, output)

    def test_promtool_takes_configuration_and_rules(self):
        self.check("check", "config", CONFIGS / "prometheus.yml")
        self.check("check", "rules", CONFIGS / "trivium.rules.yml")

    def test_promtool_takes_the_configuration_for_kubernetes(self):
        # Debian builds Prometheus without this discovery: all but the discovery is checked.
        config = yaml.safe_load((CONFIGS / "kubernetes.yml").read_text())
        (job,) = config["scrape_configs"]
        self.assertEqual(job.pop("kubernetes_sd_configs"), [{"role": "pod"}])
        job["static_configs"] = [{"targets": ["127.0.0.1:1"]}]
        with tempfile.NamedTemporaryFile("w", dir=CONFIGS, prefix=".test-", suffix=".yml") as file:
            yaml.safe_dump(config, file)
            file.flush()
            self.check("check", "config", file.name)

    def test_every_alert_fires_for_its_cause(self):
        path = ROOT / "tests/dashboards/alerts_test.yml"
        self.check("test", "rules", path)
        tested = {case["alert_rule_test"][0]["alertname"]
                  for case in yaml.safe_load(path.read_text())["tests"]}
        self.assertEqual(tested, {rule["alert"] for rule in RULES if "alert" in rule})

    def test_kubernetes_discovery_keeps_the_metrics_ports_of_the_chart(self):
        config = yaml.safe_load((CONFIGS / "kubernetes.yml").read_text())
        keeps = [rule for rule in config["scrape_configs"][0]["relabel_configs"]
                 if rule.get("action") == "keep"]
        release = Release(HELM, [CHART / "ci" / "claim-values.yaml"])
        self.assertEqual(release.roles, list(ROLES))
        kept = set()
        for role in ROLES:
            labels = {"__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", name): value
                      for name, value in release.pod(role)["metadata"]["labels"].items()}
            self.assertEqual(labels["__meta_kubernetes_pod_label_app_kubernetes_io_component"], role)
            for port in release.container(role)["ports"]:
                labels["__meta_kubernetes_pod_container_port_name"] = port["name"]
                if all(re.fullmatch(rule["regex"], labels[rule["source_labels"][0]]) for rule in keeps):
                    kept.add((role, port["containerPort"]))
        listens = {role: yaml.safe_load(release.config_text(role))["server"]["metrics_listen"]
                   for role in ROLES}
        self.assertEqual(kept, {(role, int(at.rsplit(":", 1)[1])) for role, at in listens.items()})

    def test_panels_have_their_own_place(self):
        taken = {}
        for panel in DASHBOARD["panels"]:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24)
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), taken, f"{panel['title']} lies on {taken.get((x, y))}")
                    taken[x, y] = panel["title"]
        ids = [panel["id"] for panel in DASHBOARD["panels"]]
        self.assertEqual(len(ids), len(set(ids)))


class Live(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Monitored(BIN_DIR, HELM, PROMETHEUS, os.environ["TRIVIUM_TEST_MODEL"])
        cls.addClassCleanup(cls.cluster.stop)
        try:
            cls.cluster.start()
            cls.cluster.load()
        except Exception:
            print(cls.cluster.logs(1500))
            raise

    def has_data(self, expression):
        """There is a series, and not all of them are NaN (a quantile of nothing)."""
        return any(series["value"][1] != "NaN" for series in self.cluster.query(expression))

    def await_data(self, expressions):
        missing = dict(expressions)

        def look():
            for name in [name for name, expression in missing.items() if self.has_data(expression)]:
                del missing[name]
            return not missing
        try:
            wait_until("data", look, DATA_TIMEOUT_S)
        except TimeoutError:
            self.fail("no data for " + "\n".join(f"{name}: {e}" for name, e in missing.items())
                      + self.cluster.logs(1500))

    def test_every_panel_has_data(self):
        expressions = dict(dashboard_expressions())
        self.assertGreater(len(expressions), 40)
        self.await_data(expressions)

    def test_every_rule_has_data(self):
        # An alert that is quiet gives nothing; what it looks at must be there.
        expressions = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
        expressions.update({rule["record"] + " recorded": rule["record"] for rule in RULES if "record" in rule})
        for rule in RULES:
            if "alert" in rule:
                found = selectors(rule["expr"])
                self.assertTrue(found, rule)
                expressions.update({f"{rule['alert']}: {s}": s for s in found})
        self.await_data(expressions)

    def test_no_alert_fires_on_a_healthy_cluster(self):
        self.await_data({"up": f'sum(up{{job="trivium"}}) == {len(ROLES)}'})
        self.assertEqual(self.cluster.query('ALERTS{alertstate="firing"}'), [])

    def test_metrics_pages_are_well_formed(self):
        for role in ROLES:
            page = get(f"http://127.0.0.1:{self.cluster.metrics[role]}/metrics")
            own = "\n".join(line for line in page.splitlines() if "trivium_" in line) + "\n"
            code, output = promtool("check", "metrics", input=own)
            self.assertEqual((code, output), (0, ""), role)

    def test_every_own_metric_is_shown_somewhere(self):
        used = " ".join([e for _, e in dashboard_expressions()] + [rule["expr"] for rule in RULES])
        for role in ROLES:
            page = get(f"http://127.0.0.1:{self.cluster.metrics[role]}/metrics")
            names = re.findall(r"^# TYPE (trivium_\w+) ", page, re.M)
            self.assertTrue(names)
            unused = [name for name in names
                      if not re.search(name + r"(_bucket|_count|_sum)?\b", used)]
            self.assertEqual(unused, [], role)

    def test_the_http_door_answers_and_is_counted(self):
        door = f"http://127.0.0.1:{self.cluster.http}"
        self.assertEqual(json.loads(get(door + "/health")), {"status": "ok"})
        answer = json.loads(post(door + "/v1/completions", {"prompt": "The three primary colours are",
                                                            "max_tokens": 4, "ignore_eos": True}))
        self.assertEqual(answer["usage"]["completion_tokens"], 4)
        self.await_data({"counted": 'sum(trivium_router_http_requests_total{status="200"}) >= 2'})

    def test_the_http_door_shows_the_metrics_of_the_router(self):
        def names(port):
            return re.findall(r"^# TYPE (trivium_\w+) ", get(f"http://127.0.0.1:{port}/metrics"), re.M)
        self.assertEqual(names(self.cluster.http), names(self.cluster.metrics["router"]))

    def test_kv_goes_by_the_ports_that_the_chart_admits(self):
        self.await_data({"kv": "sum(trivium_kv_received_bytes_total) > 100000"})
        first = TRANSFER_PORT
        count = yaml.safe_load(self.cluster.release.config_text("decode"))["transfer"]["port_count"]
        own = {self.cluster.http, *self.cluster.grpc.values(), *self.cluster.metrics.values()}
        for role in ROLES:
            for port in listening_ports(self.cluster.processes[role].pid) - own:
                self.assertTrue(first <= port < first + count, port)


def listening_ports(pid):
    """TCP ports on which the process listens, as the kernel sees them."""
    inodes = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    ports = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}", encoding="ascii") as lines:
            for line in list(lines)[1:]:
                words = line.split()
                if words[3] == "0A" and words[9] in inodes:
                    ports.add(int(words[1].rsplit(":", 1)[1], 16))
    return ports


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
