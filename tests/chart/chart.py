"""The chart rendered by the real helm, as Python data. For the tests of this folder and of tests/dashboards."""

import pathlib
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "trivium"
ROLES = ("router", "prefill", "decode", "encode")
NAMESPACE = "serving"


class Release:
    """One rendering; `objects` maps (kind, name) to the object."""

    def __init__(self, helm, values=(), settings=(), name="demo", server=None):
        self.name = name
        command = [helm, "template", name, str(CHART), "--namespace", NAMESPACE]
        command += [part for path in values for part in ("--values", str(path))]
        command += [part for setting in settings for part in ("--set", setting)]
        if server:  # of a cluster that lookups ask
            command += ["--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", server]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(done.stderr.strip())
        self.objects = {}
        for item in yaml.safe_load_all(done.stdout):
            if item is not None:
                key = (item["kind"], item["metadata"]["name"])
                assert key not in self.objects, f"{key} is rendered twice"
                self.objects[key] = item

    @property
    def roles(self):
        """Those that this one has: the encode stage is off unless asked for."""
        there = {item["metadata"]["labels"].get("app.kubernetes.io/component") for item in self.all("ConfigMap")}
        return [role for role in ROLES if role in there]

    def all(self, kind):
        return [item for (k, _), item in self.objects.items() if k == kind]

    def of_role(self, kind, role):
        """The one object of this kind that is labelled with the role."""
        found = [i for i in self.all(kind)
                 if i["metadata"]["labels"].get("app.kubernetes.io/component") == role]
        assert len(found) == 1, f"{len(found)} x {kind} of {role}"
        return found[0]

    def workload(self, role):
        return self.of_role("Deployment" if role == "router" else "StatefulSet", role)

    def pod(self, role):
        return self.workload(role)["spec"]["template"]

    def container(self, role):
        (container,) = self.pod(role)["spec"]["containers"]
        return container

    def config_text(self, role):
        return self.of_role("ConfigMap", role)["data"]["config.yaml"]
