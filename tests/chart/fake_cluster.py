"""As much of a Kubernetes API server as `helm template --dry-run=server` asks for: discovery, and the Secrets given."""

import base64
import http.server
import json
import threading


class FakeCluster:
    def __init__(self, objects, secrets, release="demo"):
        """Knows the kinds of `objects`, and the release's `secrets`: (namespace, name) -> data."""
        self.answers = {
            "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
        }
        groups = {}
        for version, kind in sorted({(item["apiVersion"], item["kind"]) for item in objects}):
            path = f"/apis/{version}" if "/" in version else f"/api/{version}"
            found = self.answers.setdefault(
                path, {"kind": "APIResourceList", "groupVersion": version, "resources": []})
            found["resources"].append({"name": kind.lower() + "s", "singularName": "", "kind": kind,
                                       "namespaced": True, "verbs": ["get", "list"]})
            if "/" in version:
                groups[version.split("/")[0]] = {"groupVersion": version,
                                                 "version": version.split("/")[1]}
        self.answers["/apis"] = {
            "kind": "APIGroupList", "apiVersion": "v1",
            "groups": [{"name": name, "versions": [version], "preferredVersion": version}
                       for name, version in groups.items()]}
        for (namespace, name), data in secrets.items():
            self.answers[f"/api/v1/namespaces/{namespace}/secrets/{name}"] = {
                "kind": "Secret", "apiVersion": "v1",
                "metadata": {"name": name, "namespace": namespace,
                             "labels": {"app.kubernetes.io/managed-by": "Helm"},
                             "annotations": {"meta.helm.sh/release-name": release,
                                             "meta.helm.sh/release-namespace": namespace}},
                "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}}

    def __enter__(self):
        answers = self.answers

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = answers.get(self.path.split("?")[0])
                missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure",
                           "reason": "NotFound", "code": 404}
                self.send_response(200 if body else 404)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body or missing).encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
