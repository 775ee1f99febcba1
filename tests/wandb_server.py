"""A stand-in for the W&B server on loopback: what wandb 0.31 and wandb-workspaces 0.4 ask for when a run is recorded
or sent later, and when a report is saved. It keeps what arrives, and refuses every other key than its own.

Not the real thing: GraphQL is answered by the operation's name, with the fields that the clients read.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

ENTITY = "someone"
TIME = "2026-01-01T00:00:00Z"


@dataclass
class Run:
    """What arrived of a run: ``lines`` of its streams by file name, ``files`` by their path."""

    fields: dict[str, Any] = field(default_factory=dict)  # of UpsertBucket
    lines: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    complete: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines that a server keeps: those whose step is above all that came before."""
        return [line for line, rises in self._steps() if rises]

    @property
    def dropped(self) -> list[dict[str, Any]]:
        """The other lines."""
        return [line for line, rises in self._steps() if not rises]

    def _steps(self) -> Iterator[tuple[dict[str, Any], bool]]:
        highest = -1
        for line in map(json.loads, self.lines.get("wandb-history.jsonl", [])):
            yield line, line["_step"] > highest
            highest = max(highest, line["_step"])

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.lines["wandb-summary.json"][0])


@dataclass
class Artifact:
    """An artifact version: as it was announced, its files by name, whether it was committed, and who uses it."""

    fields: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False
    used_by: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.fields["artifactCollectionName"]

    @property
    def aliases(self) -> list[str]:
        return [item["alias"] for item in self.fields.get("aliases") or ()]


class WandbServer:
    """State of the stand-in; ``with serve(key) as server`` runs it at ``server.url``."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.url = ""
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.reports: list[dict[str, Any]] = []
        self.projects: list[str] = []
        self.operations: Counter[str] = Counter()
        self.refused: list[str] = []  # requests without the key
        self.unknown: list[str] = []  # requests that the stand-in does not know
        self.lock = threading.RLock()

    # ----- files

    def stream(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """The file stream: lines of a file from an offset on (the summary is one line, replaced)."""
        run = self.runs.setdefault(name, Run())
        for file, chunk in (body.get("files") or {}).items():
            lines, offset = run.lines.setdefault(file, []), chunk["offset"]
            lines[offset:] = chunk["content"]
        run.complete = run.complete or bool(body.get("complete"))
        return {}

    def upload(self, path: str, body: bytes) -> None:
        """A file of a run or of an artifact, at the address that it was given."""
        kind, owner, name = path.split("/", 2)
        if kind == "run":
            self.runs.setdefault(owner, Run()).files[name] = body
        elif kind == "manifest":
            self.artifacts[int(owner)].manifest = json.loads(body)
        else:
            self.artifacts[int(owner)].files[name] = body

    def address(self, *parts: str) -> str:
        return "/".join([self.url, "storage", *parts])

    # ----- GraphQL, by operation

    def answer(self, operation: str, given: dict[str, Any]) -> Any:
        handler = getattr(self, f"on_{operation}", None)
        if handler is None:
            self.unknown.append(operation)
            return None
        return handler(given)

    def on_ServerFeaturesQuery(self, given: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def on_Viewer(self, given: dict[str, Any]) -> Any:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "user", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": teams}
        return {"viewer": viewer | {"name": ENTITY, "admin": False, "deletedAt": None, "apiKeys": {"edges": []}}}

    on_GetDefaultEntity = on_GetViewer = on_Viewer

    def on_OrganizationCoreWeaveOrganizationID(self, given: dict[str, Any]) -> Any:
        return {"entity": {"organization": None}}

    def on_RunResumeStatus(self, given: dict[str, Any]) -> Any:
        run = self.runs.get(given["name"])
        bucket = None
        if run is not None:
            counts = {key: len(run.lines.get(f"wandb-{key}.jsonl", ())) for key in ("history", "events")}
            bucket = {
                "id": given["name"],
                "name": given["name"],
                "displayName": run.fields.get("displayName"),
                "summaryMetrics": "".join(run.lines.get("wandb-summary.json", ["{}"])),
                "logLineCount": len(run.lines.get("output.log", ())),
                "historyLineCount": counts["history"],
                "eventsLineCount": counts["events"],
                "historyTail": json.dumps(run.lines.get("wandb-history.jsonl", [])[-1:]),
                "eventsTail": json.dumps(run.lines.get("wandb-events.jsonl", [])[-1:]),
                "config": run.fields.get("config") or "{}",
                "tags": run.fields.get("tags") or [],
                "notes": None,
                "wandbConfig": "{}",
            }
        model = {"id": "model", "name": given["project"], "entity": {"id": "entity", "name": ENTITY}}
        return {"model": model | {"bucket": bucket}}

    def on_UpsertBucket(self, given: dict[str, Any]) -> Any:
        name, inserted = given["name"] or given["id"], given["name"] not in self.runs
        run = self.runs.setdefault(name, Run())
        run.fields |= {key: value for key, value in given.items() if value is not None}
        if given.get("project") and given["project"] not in self.projects:
            self.projects.append(given["project"])
        project = {"id": "model", "name": run.fields["project"], "entity": {"id": "entity", "name": ENTITY}}
        bucket = {"id": name, "name": name, "displayName": run.fields.get("displayName"), "description": None}
        bucket |= {"config": run.fields.get("config"), "sweepName": None, "project": project}
        lines = len(run.lines.get("wandb-history.jsonl", ()))
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": lines}, "inserted": inserted}}

    def on_CreateRunFiles(self, given: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": self.address("run", given["run"], name)} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def on_MarkRunFilesUploaded(self, given: dict[str, Any]) -> Any:
        return {"markRunFilesUploaded": {"success": True}}

    def on_CreateArtifact(self, given: dict[str, Any]) -> Any:
        self.artifacts.append(Artifact(given["input"]))
        artifact = {
            "id": str(len(self.artifacts) - 1),
            "state": "PENDING",
            "artifactSequence": {"latestArtifact": None},
        }
        return {"createArtifact": {"artifact": artifact}}

    def on_CreateArtifactManifest(self, given: dict[str, Any]) -> Any:
        return {"createArtifactManifest": self._manifest(given["artifactID"])}

    def on_UpdateArtifactManifest(self, given: dict[str, Any]) -> Any:
        return {"updateArtifactManifest": self._manifest(given["artifactManifestID"])}

    def _manifest(self, number: str) -> Any:
        file = {"id": number, "uploadUrl": self.address("manifest", number, "manifest"), "uploadHeaders": []}
        return {"artifactManifest": {"id": number, "file": file}}

    def on_CreateArtifactFiles(self, given: dict[str, Any]) -> Any:
        edges = []
        for spec in given["input"]["artifactFiles"]:
            number, name = spec["artifactID"], spec["name"]
            node = {"storagePath": f"{number}/{name}", "uploadUrl": self.address("artifact", number, name)}
            node |= {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": number}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, given: dict[str, Any]) -> Any:
        artifact = self.artifacts[int(given["artifactID"])]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": artifact.fields["digest"]}}}

    def on_UseArtifact(self, given: dict[str, Any]) -> Any:
        self.artifacts[int(given["input"]["artifactID"])].used_by.append(given["input"]["runName"])
        return {"useArtifact": {"artifact": {"id": given["input"]["artifactID"]}}}

    def on_ArtifactType(self, given: dict[str, Any]) -> Any:
        return {"project": {"artifact": None}}  # its type is not known yet

    def on_Run(self, given: dict[str, Any]) -> Any:
        run = self.runs.get(given["name"])
        if run is None:
            return {"project": {"run": None}}
        empty = ("sweepName", "commit", "description", "notes", "historyKeys", "group", "jobType")
        found = dict.fromkeys(empty) | {
            "id": "run",
            "name": given["name"],
            "displayName": run.fields.get("displayName"),
        }
        found |= {"projectId": "1", "tags": [], "state": "finished", "config": "{}", "summaryMetrics": "{}"}
        found |= {
            "systemMetrics": "{}",
            "historyLineCount": 0,
            "readOnly": False,
            "user": {"name": ENTITY, "username": ENTITY},
        }
        return {"project": {"run": found | {"createdAt": TIME, "heartbeatAt": TIME}}}

    def on_GetProjects(self, given: dict[str, Any]) -> Any:
        fields = {"__typename": "Project", "id": "model", "entityName": ENTITY, "createdAt": TIME}
        fields |= {"isBenchmark": False, "user": None}
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": [{"node": fields | {"name": name}} for name in self.projects]}}

    def on_ProjectInternalId(self, given: dict[str, Any]) -> Any:
        known = given["projectName"] in self.projects
        return {"project": {"id": "model", "internalId": "UHJvamVjdDox"} if known else None}

    def on_upsertView(self, given: dict[str, Any]) -> Any:
        self.reports.append(given)
        project = {"id": "model", "name": given["projectName"], "entityName": given["entityName"]}
        view = {key: given[key] for key in ("type", "name", "displayName", "description", "spec")}
        view |= {"id": f"view{len(self.reports)}", "project": project, "updatedAt": TIME}
        return {"upsertView": {"view": view, "inserted": True}}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Any
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionResetError):  # wandb-core leaves without closing the connections that it kept
            super().handle()

    def do_POST(self) -> None:
        state: WandbServer = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/sdk/otel/"):  # wandb's measurements of itself, sent without a key
            return self.send(200, {})
        expected = "Basic " + base64.b64encode(f"api:{state.key}".encode()).decode()
        if self.headers.get("Authorization") != expected:
            state.refused.append(self.path)
            return self.send(401, {"errors": [{"message": "user is not logged in"}]})
        with state.lock:
            if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                return self.send(200, state.stream(found[1], json.loads(body)))
            if self.path == "/graphql":
                request = json.loads(body)
                name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
                operation = name[1] if name else request["query"]
                state.operations[operation] += 1
                data = state.answer(operation, request.get("variables") or {})
                if data is None:
                    return self.send(400, {"errors": [{"message": f"the stand-in does not know {operation}"}]})
                return self.send(200, {"data": data})
            state.unknown.append(f"POST {self.path}")
            return self.send(404, {})

    def do_PUT(self) -> None:
        state: WandbServer = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with state.lock:
            state.upload(unquote(self.path.removeprefix("/storage/")), body)
        self.send(200, {})

    def do_GET(self) -> None:
        state: WandbServer = self.server.state
        if self.path != "/":
            state.unknown.append(f"GET {self.path}")
        self.send(404, {})

    def send(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not on the terminal."""


@contextmanager
def serve(key: str) -> Iterator[WandbServer]:
    """The stand-in, on a free port of the loopback device."""
    state = WandbServer(key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.state = state  # type: ignore[attr-defined]
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
