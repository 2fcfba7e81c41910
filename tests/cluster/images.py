"""The images on the nodes: the program with which an operator gives them names and copies them into a registry.

``WUKONG_IMAGES`` names the program. It is run as ``PROGRAM name IMAGE OTHER``, which gives an image of every node
another name besides, and as ``PROGRAM push IMAGE OTHER``, which copies it as it is into a registry under that name and
prints its digest.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "WUKONG_IMAGES"
NAMES = ("data", "ray", "mlflow")


def tagged(name: str) -> str:
    """The name that this repository's manifests give an image."""
    return f"localhost/wukong/{name}:0.2.0"


def program() -> str:
    """The operator's program; without one the test is skipped."""
    found = os.environ.get(VARIABLE)
    if not found:
        pytest.skip(f"{VARIABLE} names no program that names images: PROGRAM name|push IMAGE OTHER")
    return found


def do(verb: str, image: str, other: str) -> str:
    """Have the operator's program do something to an image; the last word that it prints."""
    print(f"{verb} {image} {other}", flush=True)
    done = subprocess.run([program(), verb, image, other], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, f"{verb} {image}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    return (done.stdout.split() or [""])[-1]


def compiled(folder: Path, data_image: str) -> Path:
    """Compile the pipelines with another image of components; the folder."""
    variables = {**os.environ, "WUKONG_DATA_IMAGE": data_image}
    subprocess.run([sys.executable, "-m", "pipelines.compile", str(folder)], env=variables, check=True, timeout=600)
    return folder
