"""A small Kubernetes API on loopback: objects of any kind, RayJobs with scripted statuses, watches, pods, their logs.

It answers as the API server does where this project depends on it: resource versions, watch events in order after a
version, 409 for a name that is taken, 410 for a version that has gone, Status objects as errors, admission by the
RayJob's schema. A script says what the KubeRay operator and the kubelet would do once a RayJob was made. Of other kinds
it stores what is made, and what is applied and patched, merged over what is there; a Job has ended at once. It checks
nothing of these: ``kube_api_server`` is a real one.
"""

import asyncio
import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import crd
import pytest
import yaml
from aiohttp import web

_ENDED = ("Complete", "Failed", "ValidationFailed")
_LABEL_VALUE = re.compile("(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", re.ASCII)
_UNTIL = 120.0  # seconds in which a script's condition comes true on a slow and busy machine
_SECOND = 0.1  # of a watch: clients ask for whole seconds, and what is seen only by a new watch is waited for
RAYJOBS = "/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
KUEUE = "/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace}/workloads"
PENDING = "/apis/visibility.kueue.x-k8s.io/v1beta2/namespaces/{namespace}/localqueues/{name}/pendingworkloads"
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"


class ApiServer:
    """The server; start it with ``with``.

    Attributes:
        scripts: what happens to the first, second, ... RayJob that is made, as a list of steps each: a mapping is a
            status, ``("log", line)`` one line of the submitter's log, ``("pods", [...])`` the cluster's pods,
            ``("sleep", seconds)``, ``("until", condition)``, ``("call", function)``, ``("drop logs",)``,
            ``("no submitter",)`` and ``("delete",)``. The next line is that of another submitter, if it was gone.
        objects: those of all kinds but RayJobs, Workflows, Workloads and pods of Ray clusters, by their paths.
        changes: requests that have changed something of these, as "METHOD path".
        conditions: of Jobs that are made.
        jobs: RayJobs by name.
        workflows: Argo's Workflows by name; ``change_workflow`` changes them.
        requests: every request, as "METHOD path".
        patches: of RayJobs that were accepted, each with its time (``time.monotonic``).
        drop_watches: how many watches still to drop without notice, each after its first event.
        expire_watches: how many watches still to answer with an ERROR event of code 410.
        watching: how many watches are open and wait for events; a script that needs an event to be seen waits for one,
            since a client that reads the status first gets no event of it.
        unavailable: how many requests still to answer with 503.
        forbid: verbs and paths to answer with 403.
        rules: what is allowed, by namespace: the rules of the Roles bound to the client, and of ClusterRoles under "";
            everything while empty.
        workloads: Kueue's, by the name of their RayJob.
        pending: names of the Workloads that wait, in Kueue's order; None where Kueue does not tell it.
        secrets: values of the Secrets by "namespace/name".
    """

    def __init__(self) -> None:
        self.scripts: list[list[Any]] = []
        self.objects: dict[str, dict[str, Any]] = {}
        self.changes: list[str] = []
        self.conditions = [{"type": "Complete", "status": "True"}]
        self.secrets = Secrets(self)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.workflows: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.workloads: dict[str, dict[str, Any]] = {}
        self.pending: list[str] | None = None
        self.requests: list[str] = []
        self.patches: list[tuple[float, dict[str, Any]]] = []
        self.drop_watches = self.expire_watches = self.unavailable = self.watching = 0
        self.lose_create = False
        self.forbid: set[str] = set()
        self.rules: dict[str, list[dict[str, Any]]] = {}
        self.kuberay_installed = True
        self.url = ""
        self._version = 100
        self._events: list[tuple[int, str, dict[str, Any]]] = []
        self._logs: dict[str, list[str]] = {}
        self._submitters: dict[str, int] = {}
        self._log_generation = 0
        self._moment = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._wrong: list[Exception] = []

    def __enter__(self) -> "ApiServer":
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(120)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        if self._wrong:
            raise self._wrong[0]

    def put(self, manifest: dict[str, Any]) -> None:
        """Have an object."""
        metadata, version, kind = manifest["metadata"], manifest["apiVersion"], manifest["kind"].lower()
        plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
        place = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        self.objects[f"{root}{place}/{plural}/{metadata['name']}"] = _stored(manifest, {})

    def named(self, plural: str, namespace: str = "") -> dict[str, dict[str, Any]]:
        """The objects of a kind, by name."""
        ending = (f"/namespaces/{namespace}" if namespace else "") + f"/{plural}/"
        return {path.rpartition("/")[2]: each for path, each in self.objects.items() if ending in path}

    @property
    def config_maps(self) -> dict[str, dict[str, str]]:
        """The data of the installation's ConfigMaps by name, which may be changed."""
        return {name: each["data"] for name, each in self.named("configmaps", "wukong").items()}

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that names this server."""
        cluster = {"name": "test", "cluster": {"server": self.url}}
        context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
        user = {"name": "test", "user": {"token": "t0ken"}}
        value = {"apiVersion": "v1", "kind": "Config", "current-context": "test"}
        value |= {"clusters": [cluster], "contexts": [context], "users": [user]}
        path.write_text(yaml.safe_dump(value))
        return path

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main(ready))
        self._loop.close()

    async def _main(self, ready: threading.Event) -> None:
        self._stopping, self._changed = asyncio.Event(), asyncio.Condition()
        application = web.Application(middlewares=[self._front])
        application.router.add_get(RAYJOBS, self._list)
        application.router.add_post(RAYJOBS, self._create)
        application.router.add_get(RAYJOBS + "/{name}", self._get)
        application.router.add_delete(RAYJOBS + "/{name}", self._delete)
        application.router.add_patch(RAYJOBS + "/{name}", self._patch)
        application.router.add_get(KUEUE, self._list_workloads)
        application.router.add_get(PENDING, self._list_pending)
        application.router.add_get(WORKFLOWS, self._watch)
        application.router.add_get(WORKFLOWS + "/{name}", self._get)
        application.router.add_get("/api/v1/namespaces/{namespace}/pods", self._list_pods)
        application.router.add_get("/api/v1/namespaces/{namespace}/pods/{name}", self._get)
        application.router.add_get("/api/v1/namespaces/{namespace}/pods/{name}/log", self._log)
        application.router.add_route("*", "/{path:.*}", self._any)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await self._stopping.wait()
        for task in self._tasks:
            task.cancel()
        await runner.cleanup()

    @web.middleware
    async def _front(self, request: web.Request, handler: Any) -> web.StreamResponse:
        verb = "WATCH" if request.query.get("watch") else request.method
        self.requests.append(f"{verb} {request.path}")
        if request.headers.get("Authorization") != "Bearer t0ken":
            return _status(401, "Unauthorized", "Unauthorized")
        if self.unavailable:
            self.unavailable -= 1
            return _status(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        if {verb, request.path} & self.forbid:
            who = 'User "system:serviceaccount:kubeflow:pipeline-runner"'
            return _status(403, "Forbidden", f"rayjobs.ray.io is forbidden: {who} cannot {verb.lower()} resource")
        if self.rules and not self._allowed(request):
            return _status(403, "Forbidden", f"no Role allows {verb} {request.path}")
        if not self.kuberay_installed and "/apis/ray.io/" in request.path:
            return web.Response(status=404, text="404 page not found\n", content_type="text/plain")
        response: web.StreamResponse = await handler(request)
        return response

    def _allowed(self, request: web.Request) -> bool:
        group, namespace, resource, name = authorization_of(request.path)
        verb = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[request.method]
        if verb == "get" and not name:
            verb = "watch" if request.query.get("watch") else "list"
        return any(
            group in rule["apiGroups"]
            and resource in rule["resources"]
            and verb in rule["verbs"]
            and (not rule.get("resourceNames") or name in rule["resourceNames"])
            for rule in self.rules.get(namespace, [])
        )

    async def _notify(self, kind: str, job: dict[str, Any]) -> None:
        self._version += 1
        job["metadata"]["resourceVersion"] = str(self._version)
        async with self._changed:
            self._events.append((self._version, kind, json.loads(json.dumps(job))))
            self._changed.notify_all()

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body["metadata"]["name"]
        if name in self.jobs:
            return _status(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
        if wrong := crd.errors(body):
            return _status(422, "Invalid", f'RayJob.ray.io "{name}" is invalid: {wrong}')
        body["metadata"] |= {"uid": f"uid-of-{name}", "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.jobs[name] = body
        await self._notify("ADDED", body)
        script = self.scripts.pop(0) if self.scripts else []
        task = asyncio.create_task(self._play(name, script))
        self._tasks.add(task)
        if self.lose_create:
            self.lose_create = False
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(body, status=201)

    async def _play(self, name: str, script: list[Any]) -> None:
        """A script that fails ends the RayJob, so that nobody waits for it, and fails the test when the server ends."""
        try:
            await self._take_steps(name, script)
        except Exception as error:  # noqa: BLE001 - raised again when the server ends
            self._wrong.append(error)
            if name in self.jobs:
                await self._notify("DELETED", self.jobs.pop(name))

    async def _take_steps(self, name: str, script: list[Any]) -> None:
        for step in script:
            job = self.jobs.get(name)
            if job is None:
                return
            match step:
                case ("sleep", seconds):
                    await asyncio.sleep(seconds)
                case ("until", condition):
                    async with asyncio.timeout(_UNTIL):
                        while not condition():
                            await asyncio.sleep(0.02)
                case ("call", function):
                    await asyncio.to_thread(function)
                case ("log", line):
                    self._moment += 1
                    self._logs.setdefault(name, []).append(f"{_time(self._moment)} {line}")
                case ("no submitter",):
                    self._logs.pop(name, None)
                    self._submitters[name] = self._submitters.get(name, 0) + 1
                case ("drop logs",):
                    self._log_generation += 1
                    await asyncio.sleep(0.05)
                case ("pods", pods):
                    self.pods = pods
                case ("delete",):
                    del self.jobs[name]
                    await self._notify("DELETED", job)
                case status:
                    wrong = crd.errors({"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": {}, "status": status})
                    assert not wrong, wrong
                    job["status"] = {**job.get("status", {}), **status}
                    await self._notify("MODIFIED", job)
            await asyncio.sleep(0.01)

    async def _get(self, request: web.Request) -> web.Response:
        _, _, resource, name = authorization_of(request.path)
        pods = {each["metadata"]["name"]: each for each in self.pods}
        found = {"rayjobs": self.jobs, "workflows": self.workflows, "pods": pods}[resource].get(name)
        return web.json_response(found) if found else _status(404, "NotFound", f'{resource} "{name}" not found')

    async def _patch(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        patch = await request.json()
        if wrong := _wrong_patch(request, patch):
            return wrong
        if name not in self.jobs:
            return _status(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        version = patch["metadata"].pop("resourceVersion", None)
        if version and version != self.jobs[name]["metadata"]["resourceVersion"]:
            return _status(409, "Conflict", "the object has been modified")
        for key, value in patch["metadata"].get("labels", {}).items():
            if value is not None and (len(value) > 63 or not _LABEL_VALUE.fullmatch(value)):
                return _status(422, "Invalid", f'metadata.labels: Invalid value: "{value}" of {key}')
        patched = _merged(self.jobs[name], patch)
        if wrong := crd.errors(patched):
            return _status(422, "Invalid", f'RayJob.ray.io "{name}" is invalid: {wrong}')
        self.patches.append((time.monotonic(), patch))
        if patched != self.jobs[name]:  # else there is no new version, and no event
            self.jobs[name] = patched
            await self._notify("MODIFIED", patched)
        return web.json_response(self.jobs[name])

    async def _list_workloads(self, request: web.Request) -> web.Response:
        uid = request.query["labelSelector"].removeprefix("kueue.x-k8s.io/job-uid=")
        items = [found for name, found in self.workloads.items() if uid == f"uid-of-{name}"]
        return web.json_response({"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadList", "items": items})

    async def _list_pending(self, request: web.Request) -> web.Response:
        if self.pending is None:
            return _status(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        items = [
            {"metadata": {"name": name}, "localQueueName": request.match_info["name"], "positionInClusterQueue": number}
            for number, name in enumerate(self.pending)
        ]
        return web.json_response({"kind": "PendingWorkloadsSummary", "metadata": {}, "items": items})

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.jobs:
            return _status(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        job = self.jobs.pop(name)
        cluster = job.get("status", {}).get("rayClusterName")
        self.pods = [each for each in self.pods if each["metadata"]["labels"].get("ray.io/cluster") != cluster]
        await self._notify("DELETED", job)
        return web.json_response({"apiVersion": "v1", "kind": "Status", "status": "Success"})

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            return await self._watch(request)
        wanted = dict(pair.split("=") for pair in request.query.get("labelSelector", "").split(",") if pair)
        items = [job for job in self.jobs.values() if wanted.items() <= (job["metadata"].get("labels") or {}).items()]
        value = {"apiVersion": "ray.io/v1", "kind": "RayJobList", "metadata": {"resourceVersion": str(self._version)}}
        return web.json_response(value | {"items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        if self.expire_watches:
            self.expire_watches -= 1
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        _, _, resource, _ = authorization_of(request.path)
        wanted = (request.query["fieldSelector"].removeprefix("metadata.name="), resource)
        self.watching += 1
        try:
            # A watch without a version begins with what is there.
            async for kind, job in self._after(int(request.query.get("resourceVersion", 0)), request):
                if (job["metadata"]["name"], f"{job['kind'].lower()}s") != wanted:
                    continue
                await response.write(json.dumps({"type": kind, "object": job}).encode() + b"\n")
                if self.drop_watches:
                    self.drop_watches -= 1
                    assert request.transport is not None
                    request.transport.abort()
                    break
        finally:
            self.watching -= 1
        return response

    def change_workflow(self, name: str, spec: dict[str, Any]) -> None:
        """Make or change a Workflow; whoever watches it is told."""
        kind = "MODIFIED" if name in self.workflows else "ADDED"
        workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name}, "spec": spec}
        self.workflows[name] = workflow
        asyncio.run_coroutine_threadsafe(self._notify(kind, workflow), self._loop).result(60)

    async def _after(self, version: int, request: web.Request) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        deadline = self._loop.time() + _SECOND * int(request.query["timeoutSeconds"])
        while self._loop.time() < deadline and not self._stopping.is_set():
            for at, kind, job in list(self._events):
                if at > version:
                    version = at
                    yield kind, job
            with contextlib.suppress(TimeoutError):
                async with self._changed:
                    await asyncio.wait_for(self._changed.wait(), 0.05)

    async def _any(self, request: web.Request) -> web.Response:
        """An object of any kind that nothing else here is for, or those of a kind."""
        path, method = request.path, request.method
        body = await request.json() if request.can_read_body else {}
        if method == "GET":
            return self._found(path, request.query.get("labelSelector", ""))
        before = json.dumps(self.objects, sort_keys=True)
        if method == "POST":
            name = body["metadata"].setdefault("name", f"{body['metadata'].get('generateName')}{len(self.changes)}")
            path = f"{path}/{name}"
            if path in self.objects:
                return _status(409, "AlreadyExists", f'"{path}" already exists')
            body |= {"status": {"conditions": self.conditions}} if path.startswith("/apis/batch/") else {}
        elif method == "PATCH" and (wrong := _wrong_patch(request, body)):
            return wrong
        elif path not in self.objects and "apply" not in request.content_type:
            return _status(404, "NotFound", f'"{path}" not found')
        if method == "DELETE":
            inside = f"/namespaces/{path.removeprefix('/api/v1/namespaces/')}/"
            answer = self.objects.pop(path)
            self.objects = {name: each for name, each in self.objects.items() if inside not in name}
        else:
            answer = self.objects[path] = _stored(body, self.objects.get(path, {}))
        if json.dumps(self.objects, sort_keys=True) != before:
            self.changes.append(f"{method} {request.path}")
        return web.json_response(answer)

    def _found(self, path: str, selector: str) -> web.Response:
        group, namespace, resource, name = authorization_of(path)
        if name and path not in self.objects:
            return _status(404, "NotFound", f'{resource} "{name}" not found')
        if name:
            return web.json_response(self.objects[path])
        wanted = dict(pair.split("=") for pair in selector.split(",") if pair)
        items = [
            each
            for (of, place, kind, _), each in ((authorization_of(known), each) for known, each in self.objects.items())
            if (of, kind) == (group, resource) and namespace in ("", place)
            if wanted.items() <= each["metadata"].get("labels", {}).items()
        ]
        return web.json_response({"items": items})

    async def _list_pods(self, request: web.Request) -> web.Response:
        selector, namespace = request.query.get("labelSelector", ""), request.match_info["namespace"]
        items: list[dict[str, Any]] = []
        if selector.startswith("batch.kubernetes.io/job-name="):
            name = selector.partition("=")[2]
            if name in self._logs:
                status = self.jobs.get(name, {}).get("status", {})
                ended = status.get("jobDeploymentStatus") in _ENDED
                items = [pod(self._submitter(name), {"phase": "Succeeded" if ended else "Running"})]
        else:
            wanted = dict(pair.split("=") for pair in selector.split(",") if pair)
            here = [each for each in self.pods if each["metadata"].get("namespace", namespace) == namespace]
            items = [entry for entry in here if wanted.items() <= entry["metadata"]["labels"].items()]
        return web.json_response({"apiVersion": "v1", "kind": "PodList", "items": items})

    def _submitter(self, job: str) -> str:
        return f"{job}.{self._submitters.get(job, 0)}-submitter"

    async def _log(self, request: web.Request) -> web.StreamResponse:
        pod_name = request.match_info["name"]
        name = pod_name.removesuffix("-submitter").partition(".")[0]
        if name == pod_name:  # the head's own log
            return web.Response(text="head: GCS started\nhead: no worker came\n")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        # The kubelet resolves sinceTime to whole seconds: lines of that second come again.
        since = request.query.get("sinceTime", "")[:19]
        sent, generation = 0, self._log_generation
        while not self._stopping.is_set():
            lines = [line for line in self._logs.get(name, []) if line[:19] >= since]
            for line in lines[sent:]:
                await response.write(line.encode() + b"\n")
            sent = len(lines)
            if generation != self._log_generation:
                assert request.transport is not None
                request.transport.abort()
                return response
            status = self.jobs.get(name, {}).get("status", {})
            gone = self._submitter(name) != pod_name
            if gone or name not in self.jobs or status.get("jobDeploymentStatus") in _ENDED:
                break
            await asyncio.sleep(0.01)
        return response


def authorization_of(path: str) -> tuple[str, str, str, str]:
    """API group, namespace (none: ""), resource (with its subresource) and name (none: "") of a request's path."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace, rest = (rest[1], rest[2:]) if rest[0] == "namespaces" and len(rest) > 2 else ("", rest)
    return group, namespace, "/".join([rest[0], *rest[2:]]), "".join(rest[1:2])


class Secrets(MutableMapping[str, dict[str, str]]):
    """The values of a server's Secrets by "namespace/name"."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def __getitem__(self, name: str) -> dict[str, str]:
        data = self._server.objects[self._path(name)]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def __setitem__(self, name: str, values: dict[str, str]) -> None:
        metadata = dict(zip(("namespace", "name"), name.split("/"), strict=True))
        self._server.put({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values})

    def __delitem__(self, name: str) -> None:
        del self._server.objects[self._path(name)]

    def __iter__(self) -> Iterator[str]:
        of = (authorization_of(path) for path in self._server.objects)
        return iter([f"{namespace}/{name}" for _, namespace, resource, name in of if resource == "secrets"])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @staticmethod
    def _path(name: str) -> str:
        return "/api/v1/namespaces/{}/secrets/{}".format(*name.split("/"))


def _stored(given: dict[str, Any], existing: dict[str, Any]) -> dict[str, Any]:
    """An object as it is kept: with ``data`` for ``stringData``, and what the API server adds."""
    made: dict[str, Any] = _merged(existing, json.loads(json.dumps(given)))
    for key, value in made.pop("stringData", {}).items():
        made.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()
    metadata = made["metadata"]
    metadata.setdefault("uid", f"uid of {metadata.get('namespace', '')}/{metadata['name']}")
    metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
    return made


def pod(name: str, status: dict[str, Any], labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A pod as the API returns it, as far as anybody asks."""
    metadata = {"name": name, "uid": f"uid-of-{name}", "labels": labels or {}}
    metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
    spec = {"containers": [{"name": "main", "image": "x"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def _merged(value: Any, patch: Any) -> Any:
    """A value changed by a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    kept = dict(value) if isinstance(value, dict) else {}
    for key, entry in patch.items():
        kept[key] = _merged(kept.get(key), entry)
    return {key: entry for key, entry in kept.items() if entry is not None}


def _time(tick: int) -> str:
    """Ten ticks a second, written with as few digits as RFC 3339 allows: the awkward case for comparing texts."""
    seconds, tenth = divmod(tick, 10)
    return f"2026-01-01T00:00:{seconds:02d}" + (f".{tenth}Z" if tenth else "Z")


def _wrong_patch(request: web.Request, body: Any) -> web.Response | None:
    """A JSON patch is a list of operations, a merge patch an object; custom resources know no strategic merge."""
    if (request.content_type == "application/json-patch+json") != isinstance(body, list):
        return _status(400, "BadRequest", "error decoding patch: json: cannot unmarshal object into []")
    if "strategic" in request.content_type and "ray.io" in request.path:
        return _status(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
    return None


def _status(code: int, reason: str, message: str) -> web.Response:
    value = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return web.json_response(value | {"reason": reason, "message": message}, status=code)


@contextlib.contextmanager
def running(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server for the time of the block; the kubeconfig of who asks lies in a folder."""
    with ApiServer() as server:
        path = server.kubeconfig(folder / "kubeconfig")
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        yield server
