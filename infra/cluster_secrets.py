"""Secrets of a cluster: what is in new ones, and the calls on those of a namespace."""

import base64
import logging
import secrets
import string
from collections.abc import Mapping
from typing import Any

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
    """The few calls on Secrets that setting up needs."""

    def __init__(self) -> None:
        from kubernetes import client, config

        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
        self._core, self._apps, self._gone = client.CoreV1Api(), client.AppsV1Api(), client.ApiException

    def get(self, namespace: str, name: str) -> dict[str, str] | None:
        """A Secret's values, or None."""
        secret = self._read(namespace, name)
        return None if secret is None else _decoded(secret)

    def get_or_create(self, namespace: str, name: str, make: Any) -> dict[str, str]:
        """A Secret's values as they stand; made when there is none."""
        value = self.get(namespace, name)
        wanted: dict[str, str] = make()
        if value is None:
            if self._create(namespace, name, wanted):
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
        existing = self._read(namespace, name)
        if existing is not None:
            held = {reference.uid for reference in existing.metadata.owner_references or []}
            if _decoded(existing) == dict(value) and {reference["uid"] for reference in owners} <= held:
                return False
        if not self._create(namespace, name, value, owners):
            body = {"stringData": dict(value)} | ({"metadata": {"ownerReferences": owners}} if owners else {})
            self._ask(self._core.patch_namespaced_secret, namespace, name, body)
        log.info("Secret %s/%s written", namespace, name)
        return True

    def restart(self, namespace: str, name: str, version: str) -> None:
        """Have the pods of a StatefulSet made anew, if there is one, unless it was done for this version."""
        change = {"spec": {"template": {"metadata": {"annotations": {"wukong/keys": version}}}}}
        try:
            self._apps.patch_namespaced_stateful_set(name, namespace, change)
        except self._gone as error:
            if error.status == 404:
                return
            raise StackError(f"cannot start {namespace}/{name} again: {error.reason} ({error.body})") from error
        log.info("%s/%s starts again, with the keys as they are now", namespace, name)

    def made_here(self, namespace: str, name: str) -> bool:
        """Whether a Secret was made by this program and not by the operator."""
        secret = self._read(namespace, name)
        return secret is not None and MADE_HERE.items() <= (secret.metadata.labels or {}).items()

    def _read(self, namespace: str, name: str) -> Any:
        try:
            return self._core.read_namespaced_secret(name, namespace)
        except self._gone as error:
            if error.status == 404:
                return None
            raise StackError(f"cannot read Secret {namespace}/{name}: {error.reason} ({error.body})") from error

    def _reference(self, namespace: str, name: str) -> dict[str, str]:
        try:
            reference = self._core.read_namespaced_config_map(name, namespace)
        except self._gone as error:
            raise StackError(f"cannot read ConfigMap {namespace}/{name}: {error.reason} ({error.body})") from error
        return {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": reference.metadata.uid}

    def _create(
        self, namespace: str, name: str, value: Mapping[str, str], owners: list[dict[str, str]] | None = None
    ) -> bool:
        metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/name": "wukong", **MADE_HERE}}
        if owners:
            metadata["ownerReferences"] = owners
        body = {"metadata": metadata, "stringData": dict(value), "type": "Opaque"}
        try:
            self._core.create_namespaced_secret(namespace, body)
        except self._gone as error:
            if error.status == 409:
                return False
            raise StackError(f"cannot make Secret {namespace}/{name}: {error.reason} ({error.body})") from error
        return True

    def _ask(self, call: Any, namespace: str, name: str, body: Mapping[str, Any]) -> None:
        try:
            call(name, namespace, body)
        except self._gone as error:
            raise StackError(f"cannot change {namespace}/{name}: {error.reason} ({error.body})") from error


def _decoded(secret: Any) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in (secret.data or {}).items()}
