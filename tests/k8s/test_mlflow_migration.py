"""The container that brings MLflow's database to the schema of its server, before the server starts."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from manifests import named, plain
from mlflow.store.db import utils

pytestmark = pytest.mark.long


def migrate(database: Path) -> "subprocess.CompletedProcess[str]":
    """Do what the container does, with MLflow of this environment."""
    pod = named(plain(), "Deployment")["mlflow"]["spec"]["template"]["spec"]
    (container,) = pod["initContainers"]
    address = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{database}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    variables = {**os.environ, **address, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    program = [*container["command"], *container["args"]]
    return subprocess.run(program, env=variables, capture_output=True, text=True, timeout=300, check=False)


def schema_of(database: Path) -> str:
    with sqlite3.connect(database) as connection:
        ((version,),) = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    return str(version)


def newest() -> tuple[str, str]:
    """The schema of this MLflow, and the one before."""
    scripts = ScriptDirectory.from_config(utils._get_alembic_config(""))
    last = scripts.get_current_head()
    assert last is not None
    return last, str(scripts.get_revision(last).down_revision)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that was empty."""
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    done = migrate(database)
    assert done.returncode == 0, done.stderr
    return database


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path))


def test_an_empty_database_and_one_of_an_earlier_version_get_the_servers_schema(database: Path) -> None:
    last, before = newest()
    assert schema_of(database) == last
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO experiments (name, lifecycle_stage) VALUES ('kept', 'active')")
    command.downgrade(utils._get_alembic_config(f"sqlite:///{database}"), before)
    assert schema_of(database) == before
    done = migrate(database)
    assert done.returncode == 0, done.stderr
    assert schema_of(database) == last
    with sqlite3.connect(database) as connection:
        assert ("kept",) in connection.execute("SELECT name FROM experiments").fetchall()


def test_a_database_of_a_later_version_is_left_alone_and_the_way_on_is_named(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    done = migrate(database)
    assert done.returncode == 1
    assert "docs/operating.md, Upgrading" in done.stderr
    assert schema_of(database) == "ffffffffffff"
