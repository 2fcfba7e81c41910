"""Kubeflow Pipelines' real API server in multi-user mode, on loopback: with Kubernetes' API, MariaDB and SeaweedFS.

``kfp-apiserver`` (KFP's ``backend/src/apiserver``, built with Go) and ``mariadbd`` are taken from where
``kube_api_server`` finds the API server. Nothing executes what is submitted: there is no Argo.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import kube_api_server
import store_server
from free_ports import free_port
from kube_api_server import READY_SECONDS, Server
from manifests import Manifest

PREFIX = "known-to-the-servers-alone:"
"""What the header of a user's name must begin with; docs/teams.md says why it is not empty."""
_KEY = {"accessKey": "kfp", "secretKey": "of-kfp-itself"}


def definition(group: str, version: str, kind: str) -> Manifest:
    """A CustomResourceDefinition that takes everything."""
    plural = f"{kind.lower()}s"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "scope": "Namespaced",
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


@contextmanager
def running(cluster: Server, folder: Path) -> Iterator[str]:
    """The API's address, for the time of the block."""
    program, database = kube_api_server.programs("kfp-apiserver", "mariadbd")
    for kind in (("argoproj.io", "v1alpha1", "Workflow"), ("kubeflow.org", "v1beta1", "ScheduledWorkflow")):
        assert cluster.create(definition(*kind), dry_run=False) == ""
    data, store_data, configuration = folder / "mariadb", folder / "store", folder / "config"
    for each in (data / "mysql", store_data, configuration):
        each.mkdir(parents=True)
    with ExitStack() as stack:
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "kfp", "credentials": [_KEY], "actions": actions}
        store = stack.enter_context(store_server.running(store_data, [identity]))
        port, http, grpc = (free_port() for _ in range(3))
        command = [database, "--no-defaults", f"--datadir={data}", f"--port={port}", "--bind-address=127.0.0.1"]
        command += ["--user=root", "--skip-grant-tables", "--skip-networking=0", f"--socket={folder}/sql"]
        stack.enter_context(kube_api_server.process(command, folder / "mariadb.log"))
        settings = _settings(port, store)
        (configuration / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        (folder / "samples.json").write_text('{"pipelines": []}', encoding="utf-8")
        environment = {
            "KUBECONFIG": str(cluster.kubeconfig(folder / "kubeconfig")),
            "MULTIUSER": "true",
            "KUBEFLOW_USERID_HEADER": "kubeflow-userid",
            "KUBEFLOW_USERID_PREFIX": PREFIX,
            "POD_NAMESPACE": "kubeflow",
            "ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_HOST": "127.0.0.1",
            "ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_PORT": "1",
        }
        command = [program, f"--config={configuration}", f"--sampleconfig={folder / 'samples.json'}"]
        command += ["--logtostderr=true", f"--httpPortFlag=:{http}", f"--rpcPortFlag=:{grpc}"]
        log = folder / "kfp.log"
        started = stack.enter_context(kube_api_server.process(command, log, os.environ | environment))
        address, until = f"http://127.0.0.1:{http}", time.monotonic() + READY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{address}/apis/v2beta1/healthz", timeout=5):
                    break
            except OSError:
                ended = started.poll() is not None
                assert not ended and time.monotonic() < until, log.read_text(encoding="utf-8", errors="replace")[:9000]
                time.sleep(0.3)
        yield address


def _settings(database: int, store: str) -> dict[str, Any]:
    mysql = {"Host": "127.0.0.1", "Port": str(database), "User": "root", "Password": "", "DBName": "mlpipeline"}
    return {
        "DBDriverName": "mysql",
        "DBConfig": {"MySQLConfig": {**mysql, "GroupConcatMaxLen": "4194304"}, "ConMaxLifeTime": "120s"},
        "ObjectStoreConfig": {
            "Host": "127.0.0.1",
            "Port": store.rpartition(":")[2],
            "Secure": False,
            "Region": "us-east-1",
            "AccessKey": _KEY["accessKey"],
            "SecretAccessKey": _KEY["secretKey"],
            "BucketName": "mlpipeline",
            "PipelinePath": "pipelines",
        },
        "InitConnectionTimeout": "1m",
        "DEFAULTPIPELINERUNNERSERVICEACCOUNT": "default-editor",
        "CacheEnabled": "true",
        "ARCHIVE_CONFIG_LOG_FILE_NAME": "main.log",
        "ARCHIVE_CONFIG_LOG_PATH_PREFIX": "/artifacts",
        "CRON_SCHEDULE_TIMEZONE": "UTC",
    }
