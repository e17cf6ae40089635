"""A stand-in for Anyscale's control plane on loopback: the routes that the SDK calls, and a served application behind it.

It cannot tell whether the real one would accept a config; it shows what is sent, in which order, and what the person reads.
"""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.rollout.platform_state import TIME, USER, Platform
from tests.rollout.served import Served

CLI_TOKEN = "sss_a-secret-of-the-person"
LOG = "2026-01-01 the replica says: loading the model\nAuthorization: Bearer secret-of-the-service\n"
Json = dict[str, Any] | list[Any]
Body = dict[str, Any]


@dataclass
class Trouble:
    """Instead of an answer. `status` 0 closes the connection; `after` lets the call take effect before that."""

    method: str
    path: str
    status: int
    times: int = 1
    after: bool = False
    detail: str = "out of order"


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    body: Any


class StandIn:
    """`calls` is everything that was asked of the control plane; `troubles` is what goes wrong."""

    def __init__(self) -> None:
        self.platform, self.served = Platform(), Served()
        self.calls: list[Call] = []
        self.troubles: list[Trouble] = []
        self.uploads: dict[str, bytes] = {}
        self.compute: dict[str, Any] = {}
        self.containerfiles: list[str] = []
        self.served_url = ""
        self.before_call: Callable[[Call], None] = lambda call: None
        self.url = ""

    def applied(self) -> list[dict[str, Any]]:
        return [call.body for call in self.calls if call.path == "/api/v2/services-v2/apply"]

    def changes(self) -> list[str]:
        """The calls that change a service, in order."""
        told = {"apply": "apply", "rollback": "roll back", "terminate": "terminate"}
        words = [(call, told.get(call.path.rsplit("/", 1)[-1])) for call in self.calls if "/services-v2/" in call.path]
        return [
            f"{word} {call.body['version']} {call.body.get('canary_percent')}" if word == "apply" else word for call, word in words if word
        ]

    def answer(self, method: str, path: str, body: Body | bytes) -> Json:
        for pattern, call in ROUTES.items():
            wanted, _, route = pattern.partition(" ")
            if wanted == method and (match := re.fullmatch(route, path)):
                answer: Json = call(self, body, *match.groups())
                return answer
        raise LookupError(f"the stand-in has no route for {method} {path}")

    def services(self, body: Body) -> Json:
        self.platform.look()
        return self.platform.told(self.served_url or f"{self.url}/served")

    def apply(self, body: Body) -> Json:
        self.platform.apply(body)
        told: dict[str, Any] = self.platform.told(self.url)[0]
        return told

    def roll_back(self, body: Body, service: str) -> Json:
        self.platform.roll_back()
        told: dict[str, Any] = self.platform.told(self.url)[0]
        return told

    def terminate(self, body: Body, service: str) -> Json:
        self.platform.terminate()
        told: dict[str, Any] = self.platform.told(self.url)[0]
        return told

    def create_compute(self, body: Body) -> Json:
        name = f"compute_{len(self.compute) + 1}"
        self.compute[name] = body["config"]
        return self.compute_template({}, name)

    def compute_template(self, body: Body, name: str) -> Json:
        config = self.compute[name] | {"cloud": {"id": "cloud_1", "name": "cloud", "provider": "AWS"}, "cloud_id": "cloud_1"}
        return {
            "id": name,
            "name": name,
            "creator_id": "user_1",
            "organization_id": "org_1",
            "created_at": TIME,
            "last_modified_at": TIME,
        } | {
            "config": config,
            "version": 1,
            "anonymous": True,
            "creator": USER,
        }

    def build(self, body: Body, name: str = "build_1") -> Json:
        recipe = self.containerfiles[-1] if self.containerfiles else None
        image = None if recipe else "anyscale/ray:2.60.0-slim-py311-cu128"
        ids = {
            "id": name,
            "cluster_environment_id": "environment_1",
            "application_template_id": "environment_1",
            "creator_id": "user_1",
            "revision": 1,
        }
        times = {"created_at": TIME, "last_modified_at": TIME}
        return (
            ids
            | times
            | {
                "status": "succeeded",
                "is_byod": not recipe,
                "creator": USER,
                "application_template": ENVIRONMENT,
                "containerfile": recipe,
                "docker_image_name": image,
            }
        )

    def create_build(self, body: Body) -> Json:
        self.containerfiles.append(body["containerfile"])
        return {"id": "operation_1", "completed": True, "cluster_environment_build_id": "build_1"}

    def presign(self, body: Body, cloud: str) -> Json:
        name = body["file_name"]
        place = {"file_uri": f"s3://bucket/{name}", "bucket_name": "bucket", "bucket_path": name, "url": f"{self.url}/upload/{name}"}
        return place | {"file_exists": name in self.uploads, "url_scheme": "http"}

    def upload(self, body: bytes, name: str) -> Json:
        self.uploads[name] = body
        return {}

    def log_chunks(self, body: Body, cluster: str) -> Json:
        ids = dict.fromkeys(("cluster_id", "chunk_name", "file_name", "node_type", "node_ip", "instance_id", "session_id"), "x")
        return {"log_chunks": [ids | {"chunk_url": f"{self.url}/log", "size": len(LOG)}], "bearer_token": "secret-of-the-log"}


ENVIRONMENT = {"id": "environment_1", "name": "image-for-service-imagine", "organization_id": "org_1", "creator_id": "user_1"} | {
    "created_at": TIME,
    "last_modified_at": TIME,
}
CLOUD = {"id": "cloud_1", "name": "cloud", "provider": "AWS", "region": "us-west-2", "credentials": "x", "type": "PUBLIC"} | {
    "creator_id": "user_1",
    "created_at": TIME,
    "is_default": True,
    "customer_aggregated_logs_config_id": "x",
    "is_aioa": False,
}
PROJECT = {
    "id": "project_1",
    "name": "default",
    "description": "x",
    "cluster_config": "x",
    "created_at": TIME,
    "organization_id": "org_1",
} | {
    "is_default": True,
    "is_owner": True,
    "is_read_only": False,
    "directory_name": "default",
}
PERSON = (
    USER
    | {"verified": True, "organization_permission_level": "owner", "organization_ids": ["org_1"], "organizations": []}
    | {
        "ld_hash": "x",
        "ld_hash_fields": [],
        "pylon_hash": "x",
    }
)
JOB_CONFIG = {"build_id": "build_1", "compute_config_id": "compute_1"}
JOB_STATE = {"id": "state_1", "state_transitioned_at": TIME, "current_state": "RUNNING", "cluster": {"name": "c", "id": "cluster_1"}}
JOB = {"id": "job_1", "name": "job", "created_at": TIME, "creator_id": "user_1", "config": JOB_CONFIG, "state": JOB_STATE} | {
    "project_id": "project_1",
    "overview_url": "x",
    "is_service": True,
    "cloud_id": "cloud_1",
    "project": {"name": "default", "id": "project_1", "directory_name": "default"},
    "creator": USER,
}

ROUTES: dict[str, Callable[..., Any]] = {
    "GET /api/v2/userinfo/": lambda stand_in, body: PERSON,
    "GET /api/v2/services-v2/": StandIn.services,
    "PUT /api/v2/services-v2/apply": StandIn.apply,
    "POST /api/v2/services-v2/(.+)/rollback": StandIn.roll_back,
    "POST /api/v2/services-v2/(.+)/terminate": StandIn.terminate,
    "POST /api/v2/compute_templates/": StandIn.create_compute,
    "GET /api/v2/compute_templates/(.+)": StandIn.compute_template,
    "GET /ext/v0/cluster_computes/(.+)": StandIn.compute_template,
    "GET /api/v2/workos/deployment_infra": lambda stand_in, body: {"deployment_infra": "aws"},
    "POST /api/v2/builds/get_or_create_build_from_image_uri": StandIn.build,
    "POST /ext/v0/cluster_environments/search": lambda stand_in, body: [],
    "POST /ext/v0/cluster_environments/": lambda stand_in, body: ENVIRONMENT,
    "GET /ext/v0/cluster_environments/(.+)": lambda stand_in, body, name: ENVIRONMENT,
    "GET /ext/v0/cluster_environment_builds/": lambda stand_in, body: [],
    "POST /ext/v0/cluster_environment_builds/": StandIn.create_build,
    "GET /ext/v0/cluster_environment_builds/(.+)": StandIn.build,
    "GET /ext/v0/projects/default_project": lambda stand_in, body: PROJECT,
    "GET /api/v2/projects/(.+)": lambda stand_in, body, name: PROJECT,
    "POST /api/v2/clouds/find_by_name": lambda stand_in, body: CLOUD,
    "GET /ext/v0/clouds/(.+)": lambda stand_in, body, name: CLOUD,
    "POST /api/v2/clouds/(.+)/generate_cloud_data_bucket_presigned_url": StandIn.presign,
    "PUT /upload/(.+)": StandIn.upload,
    "GET /api/v2/decorated_ha_jobs/(.+)": lambda stand_in, body, name: JOB,
    "GET /api/v2/logs/serve_logs_download/(.+)": StandIn.log_chunks,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # an answer in one piece: in two, each would wait for an acknowledgement
    stand_in: StandIn

    def handle_any(self) -> None:
        path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path.startswith("/served/"):
            return self.reply(*self.stand_in.served.answer(self.stand_in.platform, path, query, self.headers.get("Authorization")))
        if path == "/log":
            return self.reply(200, {"Content-Type": "text/plain"}, LOG.encode())
        body = json.loads(data) if data and self.headers.get("Content-Type", "").startswith("application/json") else data
        call = Call(self.command, path, body)
        self.stand_in.calls.append(call)
        self.stand_in.before_call(call)
        if not path.startswith("/upload/") and f"cli_token={CLI_TOKEN}" not in self.headers.get("Cookie", ""):
            return self.reply_json(401, {"error": {"detail": "invalid token"}})
        trouble = next(
            (one for one in self.stand_in.troubles if one.times and one.method == self.command and re.search(one.path, path)), None
        )
        if trouble is None or trouble.after:
            answer = self.stand_in.answer(self.command, path, body)
        if trouble is None:
            return self.reply_json(200, {"results": answer, "metadata": {}} if isinstance(answer, list) else {"result": answer})
        trouble.times -= 1
        if trouble.status:
            return self.reply_json(trouble.status, {"error": {"detail": trouble.detail}})
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        return None

    do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815  the library's names

    def reply_json(self, status: int, body: Json) -> None:
        self.reply(status, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def running() -> Iterator[StandIn]:
    stand_in = StandIn()
    handler = type("BoundHandler", (Handler,), {"stand_in": stand_in})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
