"""Objects of a cluster of any kind, by the API's own paths."""

import logging
from typing import Any

from wukong.errors import StackError

log = logging.getLogger(__name__)

Manifest = dict[str, Any]


class Cluster:
    """Objects of a cluster, whatever their kind; who asks comes from the environment."""

    def __init__(self) -> None:
        from kubernetes import client, config

        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
        self._client, self._error = client.ApiClient(), client.ApiException

    def get(self, version: str, kind: str, name: str, namespace: str = "") -> Manifest | None:
        """An object, or None."""
        found: Manifest | None = self._ask("GET", _path(version, kind, namespace, name), missing=True)
        return found

    def items(self, version: str, kind: str, namespace: str, selector: str) -> list[Manifest]:
        """The objects of a kind whose labels are as the selector says, the oldest first."""
        answer = self._ask("GET", _path(version, kind, namespace), query=[("labelSelector", selector)])
        return sorted(answer["items"], key=lambda each: str(each["metadata"]["creationTimestamp"]))

    def apply(self, manifest: Manifest) -> None:
        """Have an object be as the manifest says, where the manifest says something."""
        metadata = manifest["metadata"]
        path = _path(manifest["apiVersion"], manifest["kind"], metadata.get("namespace", ""), metadata["name"])
        query = [("fieldManager", "wukong-team"), ("force", "true"), ("fieldValidation", "Strict")]
        self._ask("PATCH", path, manifest, query=query, content="application/apply-patch+yaml")
        log.info("%s %s is as it should be", manifest["kind"], metadata["name"])

    def create(self, manifest: Manifest) -> str:
        """Make an object; return its name."""
        path = _path(manifest["apiVersion"], manifest["kind"], manifest["metadata"].get("namespace", ""))
        return str(self._ask("POST", path, manifest)["metadata"]["name"])

    def delete(self, version: str, kind: str, name: str, namespace: str = "") -> None:
        """Delete an object, if it is there."""
        body = {"propagationPolicy": "Background"}
        if self._ask("DELETE", _path(version, kind, namespace, name), body, missing=True) is not None:
            log.info("%s %s is deleted", kind, name)

    def _ask(
        self,
        method: str,
        path: str,
        body: Manifest | None = None,
        query: list[tuple[str, str]] | None = None,
        content: str = "application/json",
        *,
        missing: bool = False,
    ) -> Any:
        try:
            return self._client.call_api(
                path,
                method,
                query_params=query or [],
                header_params={"Accept": "application/json", "Content-Type": content},
                body=body,
                auth_settings=["BearerToken"],
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=60,
            )
        except self._error as error:
            if missing and error.status == 404:
                return None
            raise StackError(f"the cluster refuses {method} {path}: {error.reason} ({error.body})") from error


def _path(version: str, kind: str, namespace: str, name: str = "") -> str:
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    place = f"/namespaces/{namespace}" if namespace else ""
    plural = f"{kind[:-1].lower()}ies" if kind.endswith("y") else f"{kind.lower()}s"
    return f"{root}{place}/{plural}" + (f"/{name}" if name else "")
