"""The API of Kubernetes: objects of any kind as it sends them, by its own paths, and the logs of pods.

The library is imported by whoever asks a cluster: it takes a third of a second, and a run on one machine asks none.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import urllib3

from wukong.errors import StackError

log = logging.getLogger(__name__)

Manifest = dict[str, Any]
Timeout = tuple[float, float]  # seconds: to connect, to read
_TIMEOUT = (5.0, 30.0)


class ClusterError(StackError):
    """The API refuses a request, or nothing has answered it.

    Attributes:
        status: the HTTP status; None if nothing has answered.
        reason: the status in words, or what kept the answer away.
        said: what the API says of it, or the reason.
    """

    def __init__(self, request: str, error: Any) -> None:
        self.status: int | None = getattr(error, "status", None)
        self.reason = str(getattr(error, "reason", None) or error)
        self.said = self.reason
        with suppress(AttributeError, KeyError, TypeError, ValueError):  # of what is no Status object
            self.said = json.loads(error.body)["message"] or self.reason
        super().__init__(f"the cluster {'refuses' if self.status else 'does not answer'} {request}: {self.said}")


class Cluster:
    """The objects of a cluster; who asks is the service account of this pod, or else the user of the kubeconfig.

    Raises:
        StackError: there is neither. Each method raises ``ClusterError``.
    """

    def __init__(self) -> None:
        from kubernetes import client, config

        try:
            config.load_incluster_config()
        except config.ConfigException:
            try:
                config.load_kube_config()
            except config.ConfigException as error:
                raise StackError(f"there is neither a service account nor a kubeconfig here: {error}") from error
        self._client = client.ApiClient()

    def read(self, version: str, kind: str, name: str, namespace: str = "", timeout: Timeout = _TIMEOUT) -> Manifest:
        """Return an object."""
        found: Manifest = self._ask("GET", _path(version, kind, namespace, name), timeout=timeout)
        return found

    def get(self, version: str, kind: str, name: str, namespace: str = "") -> Manifest | None:
        """Return an object, or None if there is none."""
        found: Manifest | None = self._ask("GET", _path(version, kind, namespace, name), none_if=404)
        return found

    def items(self, version: str, kind: str, namespace: str = "", selector: str = "") -> list[Manifest]:
        """Return the objects of a kind whose labels are as the selector says, the oldest first."""
        query = {"labelSelector": selector} if selector else {}
        answer = self._ask("GET", _path(version, kind, namespace), query=query)
        found = [{"apiVersion": version, "kind": kind, **each} for each in answer.get("items") or []]
        return sorted(found, key=lambda each: str(each.get("metadata", {}).get("creationTimestamp", "")))

    def apply(self, manifest: Manifest) -> None:
        """Have an object be as the manifest says, where the manifest says something."""
        metadata = manifest["metadata"]
        path = _path(manifest["apiVersion"], manifest["kind"], metadata.get("namespace", ""), metadata["name"])
        query = {"fieldManager": "wukong-team", "force": "true", "fieldValidation": "Strict"}
        self._ask("PATCH", path, manifest, query=query, content="application/apply-patch+yaml")
        log.info("%s %s is as it should be", manifest["kind"], metadata["name"])

    def create(self, manifest: Manifest) -> Manifest | None:
        """Make an object, and return it; None if there is one of its name."""
        path = _path(manifest["apiVersion"], manifest["kind"], manifest["metadata"].get("namespace", ""))
        made: Manifest | None = self._ask("POST", path, manifest, none_if=409)
        return made

    def patch(
        self, version: str, kind: str, name: str, namespace: str, change: Manifest, timeout: Timeout = _TIMEOUT
    ) -> None:
        """Merge a change into an object: lists by their keys where the API's group has no domain, else as a whole."""
        merge = "merge-patch" if "." in version else "strategic-merge-patch"
        path = _path(version, kind, namespace, name)
        self._ask("PATCH", path, change, content=f"application/{merge}+json", timeout=timeout)

    def delete(self, version: str, kind: str, name: str, namespace: str = "", timeout: Timeout = _TIMEOUT) -> None:
        """Delete an object, if it is there."""
        path, body = _path(version, kind, namespace, name), {"propagationPolicy": "Background"}
        if self._ask("DELETE", path, body, none_if=404, timeout=timeout) is not None:
            log.info("%s %s is deleted", kind, name)

    def watch(
        self, version: str, kind: str, name: str, namespace: str, seconds: int, since: str = ""
    ) -> Iterator[tuple[str, Manifest]]:
        """Yield the changes of an object, each as its type and the object, until the time or the connection ends.

        Args:
            version: the API's.
            kind: the object's.
            name: the object's.
            namespace: the object's.
            seconds: how long the API is to go on.
            since: a version of the object, whose later changes are asked for; empty to begin with what is there.
        """
        from kubernetes.client import ApiException

        query = {"watch": "true", "fieldSelector": f"metadata.name={name}", "timeoutSeconds": str(seconds)}
        query |= {"resourceVersion": since} if since else {}
        path = _path(version, kind, namespace)
        for line in self._lines(path, query, (_TIMEOUT[0], seconds + 10.0)):
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise ClusterError(f"WATCH {path}", ApiException(event["object"].get("code")))
            yield event["type"], event["object"]

    def log(self, pod: str, namespace: str, **options: str) -> Iterator[str]:
        """Yield the lines of a pod's log, with the API's options, until the log or the connection ends."""
        for line in self._lines(_path("v1", "Pod", namespace, f"{pod}/log"), options, (_TIMEOUT[0], 120.0)):
            yield line.decode("utf-8", errors="replace")

    def _lines(self, path: str, query: dict[str, str], timeout: Timeout) -> Iterator[bytes]:
        """Yield the lines of an answer as they come. What follows the last line break is no line."""
        response = self._ask("GET", path, query=query, timeout=timeout, preload=False)
        rest = b""
        try:
            for chunk in response.stream(None, decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterError(f"GET {path}", error) from error
        finally:
            response.close()
            response.release_conn()

    def _ask(
        self,
        method: str,
        path: str,
        body: Manifest | None = None,
        *,
        query: dict[str, str] | None = None,
        content: str = "application/json",
        none_if: int | None = None,
        timeout: Timeout = _TIMEOUT,
        preload: bool = True,
    ) -> Any:
        from kubernetes.client import ApiException

        try:
            return self._client.call_api(
                path,
                method,
                query_params=query or {},
                header_params={"Accept": "application/json, */*", "Content-Type": content},
                body=body,
                auth_settings=["BearerToken"],
                response_type="object",
                _preload_content=preload,
                _return_http_data_only=True,
                _request_timeout=timeout,
            )
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            if none_if is not None and getattr(error, "status", None) == none_if:
                return None
            raise ClusterError(f"{method} {path}", error) from error


def _path(version: str, kind: str, namespace: str, name: str = "") -> str:
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    place = f"/namespaces/{namespace}" if namespace else ""
    plural = f"{kind[:-1].lower()}ies" if kind.endswith("y") else f"{kind.lower()}s"
    return f"{root}{place}/{plural}" + (f"/{name}" if name else "")
