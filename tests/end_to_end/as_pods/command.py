"""The ``wukong`` command; the components of its runs have the credentials of their pods on a cluster, and no others."""

import functools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sitecustomize import PODS, give

from pipelines import local
from wukong.commands.main import main

_component_of = local.component_of


def component_of(name: str) -> Any:
    """The component of a stage, whose function runs with its pod's credentials."""
    function = _component_of(name).python_func
    pods = json.loads(Path(os.environ[PODS]).read_text(encoding="utf-8"))

    @functools.wraps(function)
    def as_pod(**arguments: Any) -> None:
        own = dict(os.environ)
        give(pods[f"component/{function.__name__}"])
        try:
            function(**arguments)
        finally:
            os.environ.clear()
            os.environ.update(own)

    return SimpleNamespace(python_func=as_pod)


if __name__ == "__main__":
    local.component_of = component_of
    main()
