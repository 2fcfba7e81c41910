"""Secrets of a cluster: what is in new ones, and the calls on those of a namespace."""

import base64
import logging
import secrets
import string
from collections.abc import Callable, Mapping

from infra.cluster_api import Cluster, ClusterError, Manifest
from wukong.errors import StackError

MADE_HERE = {"app.kubernetes.io/managed-by": "wukong-setup"}
"""Label of the Secrets that were made here and not by the operator."""
_LETTERS = string.ascii_letters + string.digits

log = logging.getLogger(__name__)


def random_text(length: int) -> str:
    """Letters and digits: safe in a URI, an INI file and JSON. 32 of them hold 190 bits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def s3_key() -> dict[str, str]:
    """A new S3 key, as a Secret's values."""
    return {"AWS_ACCESS_KEY_ID": random_text(20), "AWS_SECRET_ACCESS_KEY": random_text(40)}


def mlflow_user(name: str) -> dict[str, str]:
    """A user of MLflow with a new password, as a Secret's values."""
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": random_text(32)}


class Secrets:
    """The few calls on Secrets that setting up needs.

    Args:
        cluster: the one that has them.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def get(self, namespace: str, name: str) -> dict[str, str] | None:
        """A Secret's values, or None."""
        secret = self._cluster.get("v1", "Secret", name, namespace)
        return None if secret is None else _decoded(secret)

    def get_or_create(self, namespace: str, name: str, make: Callable[[], dict[str, str]]) -> dict[str, str]:
        """A Secret's values as they stand; made when there is none."""
        value, wanted = self.get(namespace, name), make()
        if value is None:
            if self._create(namespace, name, wanted, []):
                log.info("Secret %s/%s made", namespace, name)
                return wanted
            value = self.get(namespace, name) or {}
        missing = sorted(wanted.keys() - value.keys())
        if missing:
            raise StackError(f"Secret {namespace}/{name} lacks {', '.join(missing)}: add them, or delete the Secret")
        log.info("Secret %s/%s is there and stays as it is", namespace, name)
        return value

    def put(self, namespace: str, name: str, value: Mapping[str, str], owner: str | None = None) -> bool:
        """Make a Secret equal to a value, by a change only when it differs; return whether it differed.

        Args:
            namespace: the namespace of the Secret.
            name: the name of the Secret.
            value: its keys and values.
            owner: a ConfigMap of the namespace; the Secret is deleted when it is.
        """
        owners = [self._reference(namespace, owner)] if owner else []
        existing = self._cluster.get("v1", "Secret", name, namespace)
        if existing is not None:
            held = {reference["uid"] for reference in existing["metadata"].get("ownerReferences", [])}
            if _decoded(existing) == dict(value) and {reference["uid"] for reference in owners} <= held:
                return False
        if not self._create(namespace, name, value, owners):
            change = {"stringData": dict(value)} | ({"metadata": {"ownerReferences": owners}} if owners else {})
            self._cluster.patch("v1", "Secret", name, namespace, change)
        log.info("Secret %s/%s written", namespace, name)
        return True

    def restart(self, namespace: str, name: str, version: str) -> None:
        """Have the pods of a StatefulSet made anew, if there is one, unless it was done for this version."""
        change = {"spec": {"template": {"metadata": {"annotations": {"wukong/keys": version}}}}}
        try:
            self._cluster.patch("apps/v1", "StatefulSet", name, namespace, change)
        except ClusterError as error:
            if error.status != 404:
                raise
        else:
            log.info("%s/%s starts again, with the keys as they are now", namespace, name)

    def made_here(self, namespace: str, name: str) -> bool:
        """Whether a Secret was made by this program and not by the operator."""
        secret = self._cluster.get("v1", "Secret", name, namespace)
        return secret is not None and MADE_HERE.items() <= secret["metadata"].get("labels", {}).items()

    def _reference(self, namespace: str, name: str) -> dict[str, str]:
        uid = self._cluster.read("v1", "ConfigMap", name, namespace)["metadata"]["uid"]
        return {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid}

    def _create(self, namespace: str, name: str, value: Mapping[str, str], owners: list[dict[str, str]]) -> bool:
        labels = {"app.kubernetes.io/name": "wukong", **MADE_HERE}
        metadata: Manifest = {"name": name, "namespace": namespace, "labels": labels}
        if owners:
            metadata["ownerReferences"] = owners
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": dict(value)}
        return self._cluster.create(secret | {"type": "Opaque"}) is not None


def _decoded(secret: Manifest) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret.get("data", {}).items()}
