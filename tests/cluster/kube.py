"""kubectl, port-forwards and pods of the test's own: all that these tests need of Kubernetes."""

import json
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
_STARTS_WITHIN = 20.0
"""Seconds in which ``kubectl port-forward`` has reached a pod."""
_ANSWERS_WITHIN = 30.0
"""Seconds in which a busy server answers; a lost node never does."""
Object = dict[str, Any]

RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
POD = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}


class KubectlError(AssertionError):
    """kubectl ended with an error; the message is what it said."""


def kubectl(*arguments: str, given: str | None = None, timeout: float = 180) -> str:
    """Run kubectl against the cluster of ``KUBECONFIG``; return its output."""
    done = subprocess.run(
        ["kubectl", *arguments], input=given, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode:
        raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def apply(*manifests: Object) -> None:
    kubectl("apply", "-f", "-", given=yaml.safe_dump_all(manifests))


def make_namespace(name: str, labels: Mapping[str, str] | None = None) -> None:
    """Make a namespace; one of that name that is being deleted, by an earlier session, is waited for."""

    def is_usable() -> bool:
        found = get("namespace", name)
        return found is None or "deletionTimestamp" not in found["metadata"]

    until(f"namespace {name}", is_usable, 300, 1)
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}})


def get(kind: str, name: str, namespace: str = "wukong") -> Object | None:
    """One object, or None if there is none."""
    text = kubectl("-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
    found: Object | None = json.loads(text) if text.strip() else None
    return found


def listed(kind: str, selector: str = "", namespace: str = "wukong") -> list[Object]:
    """The objects of a kind, oldest first; namespace ``*`` for all namespaces."""
    where = ["-A"] if namespace == "*" else ["-n", namespace]
    chosen = ["-l", selector] if selector else []
    found: list[Object] = json.loads(kubectl("get", kind, *where, *chosen, "-o", "json"))["items"]
    return sorted(found, key=lambda one: (one["metadata"]["creationTimestamp"], one["metadata"]["name"]))


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def until(what: str, ask: Callable[[], T | None], seconds: float, every: float = 3.0) -> T:
    """Ask until the answer is true; say what is waited for, and what was last seen when time is over."""
    print(f"{time.strftime('%H:%M:%S')} waiting for {what} (at most {seconds:.0f} s)", flush=True)
    began, problem = time.monotonic(), ""
    while True:
        try:
            if answer := ask():
                print(f"{time.strftime('%H:%M:%S')} {what}: after {time.monotonic() - began:.0f} s", flush=True)
                return answer
            problem = ""
        except KubectlError as error:
            problem = str(error)
        if time.monotonic() - began > seconds:
            raise AssertionError(f"{what}: not within {seconds:.0f} s {problem}")
        time.sleep(every)


def rollout(*names: str, namespace: str = "wukong", seconds: int = 600) -> None:
    for name in names:
        kubectl("-n", namespace, "rollout", "status", name, f"--timeout={seconds}s", timeout=seconds + 30)


def data_image() -> str:
    """The image of components in this repository's pipelines."""
    from components.container_image import DATA_IMAGE

    return DATA_IMAGE


def run_in_pod(
    code: str,
    arguments: Sequence[str] = (),
    *,
    namespace: str = "wukong",
    labels: Mapping[str, str] | None = None,
    seconds: float = 300,
) -> str:
    """Run Python in a pod of the data image; return its output.

    Raises:
        AssertionError: it failed, or did not end in time.
    """
    name = start_pod(code, arguments, namespace=namespace, labels=labels)
    return pod_output(name, namespace, seconds)


def start_pod(
    code: str, arguments: Sequence[str] = (), *, namespace: str = "wukong", labels: Mapping[str, str] | None = None
) -> str:
    """Start a pod that runs Python; return its name."""
    name = f"cluster-test-{uuid.uuid4().hex[:8]}"
    container = {
        "name": "python",
        "image": data_image(),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", code, *arguments],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
        "securityContext": RESTRICTED,
    }
    apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"wukong/test": "cluster", **(labels or {})}},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 0,
                "securityContext": POD,
                "containers": [container],
            },
        }
    )
    return name


def pod_output(name: str, namespace: str, seconds: float = 300) -> str:
    """Wait for the end of a pod, delete it, and return its output."""

    def ended() -> str | None:
        phase = (get("pod", name, namespace) or {}).get("status", {}).get("phase")
        return phase if phase in ("Succeeded", "Failed") else None

    try:
        phase = until(f"pod {namespace}/{name}", ended, seconds, 2)
        output = kubectl("-n", namespace, "logs", name)
    finally:
        kubectl("-n", namespace, "delete", "pod", name, "--wait=false", "--ignore-not-found")
    assert phase == "Succeeded", output
    return output


class Forward:
    """A port of a service on a port of this machine, for as long as this object is open; pods may go and come back.

    ``kubectl port-forward`` chooses a pod once. When that is gone it may listen on, and close each connection at once.
    So it is tried every few seconds, and started anew.
    """

    def __init__(self, namespace: str, target: str, port: int, every: float = 3.0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._command = ["kubectl", "-n", namespace, "port-forward", target, f"{self.port}:{port}"]
        self._every = every
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._closed.is_set():
            process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            began, reached = time.monotonic(), False
            # One that has just been started may take a while to listen.
            while process.poll() is None and not self._closed.wait(self._every if reached else 0.5):
                before, reached = reached, self.leads_somewhere()
                if not reached and (before or time.monotonic() - began > _STARTS_WITHIN):
                    break
            process.terminate()
            process.wait()
            self._closed.wait(0.5)

    def leads_somewhere(self) -> bool:
        """Whether an HTTP server at the other end answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=_ANSWERS_WITHIN) as probe:
                probe.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                return bool(probe.recv(1))
        except OSError:
            return False

    def open(self, seconds: float = 120) -> "Forward":
        """Wait until it leads to a server."""
        until(" ".join(self._command[3:]), self.leads_somewhere, seconds, 0.5)
        return self

    def close(self) -> None:
        self._closed.set()
        self._thread.join(10)


def secret(name: str, namespace: str = "wukong") -> dict[str, str]:
    """The values of a Secret."""
    import base64

    found = get("secret", name, namespace)
    assert found is not None, f"there is no Secret {namespace}/{name}"
    return {key: base64.b64decode(value).decode() for key, value in found.get("data", {}).items()}
