"""Runs in a pod: custom.metrics.k8s.io/v1beta2 with one metric, whose values by pod are in /tmp/values (JSON).

Selectors that were asked for are appended to /tmp/selectors.
"""

from __future__ import annotations

import json
import ssl
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

GROUP = "custom.metrics.k8s.io/v1beta2"
METRIC = "trtllm_num_requests_running"
VALUES, SELECTORS = Path("/tmp/values"), Path("/tmp/selectors")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if f"/pods/*/{METRIC}" in url.path.replace("%2A", "*"):
            with SELECTORS.open("a") as file:
                file.write(parse_qs(url.query).get("labelSelector", [""])[0] + "\n")
            answer = metrics(url.path.split("/namespaces/")[1].split("/")[0])
        elif url.path != f"/apis/{GROUP}":
            self.send_error(404)
            return
        else:
            resource = {"name": f"pods/{METRIC}", "namespaced": True, "kind": "MetricValueList", "verbs": ["get"]}
            answer = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP, "resources": [resource]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def metrics(namespace: str) -> dict[str, object]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    values = json.loads(VALUES.read_text()) if VALUES.exists() else {}
    items = [
        {
            "describedObject": {"kind": "Pod", "namespace": namespace, "name": name, "apiVersion": "v1"},
            "metric": {"name": METRIC},
            "timestamp": now,
            "value": str(value),
        }
        for name, value in values.items()
    ]
    return {"kind": "MetricValueList", "apiVersion": GROUP, "metadata": {}, "items": items}


if __name__ == "__main__":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/e2e/tls.crt", "/e2e/tls.key")
    server = ThreadingHTTPServer(("", 6443), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
