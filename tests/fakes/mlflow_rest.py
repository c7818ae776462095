"""As much of an MLflow server as a run needs, and all that it was sent: (method, path, headers, body)."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1. `artifacts` is where it wants the files of runs; `status` is that of every answer."""

    def __init__(self, artifacts="mlflow-artifacts:/1", status=200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.artifacts, self.status, self.requests, self.run, self.tags = artifacts, status, [], {}, []
        self.address = f"127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def answer(self, path, body):
        if path.endswith("runs/create"):
            self.run = {"run_id": "a" * 32, "run_uuid": "a" * 32, "experiment_id": "1", "status": "RUNNING"}
            self.run |= {"run_name": body["run_name"], "artifact_uri": self.artifacts, "lifecycle_stage": "active"}
            self.tags = body.get("tags", [])
        if path.endswith("runs/update"):
            self.run |= {name: body[name] for name in ("status",) if name in body}
            return {"run_info": self.run}
        if "/experiments/get" in path:
            kind = {"key": "mlflow.experimentKind", "value": "custom_model_development"}
            return {"experiment": {"experiment_id": "1", "name": "resnet", "lifecycle_stage": "active", "tags": [kind]}}
        return {"run": {"info": self.run, "data": {"tags": self.tags}}} if "/runs/" in path else {}


class Handler(BaseHTTPRequestHandler):
    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        path = self.path.partition("?")[0]
        answer = self.server.answer(path, json.loads(body) if body.startswith(b"{") and self.command != "PUT" else {})
        if self.server.status != 200:
            answer = {"error_code": "UNAUTHENTICATED", "message": "log in first"}
        text = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = handle_one  # noqa: N815  http.server calls them so

    def log_message(self, *words):
        pass
