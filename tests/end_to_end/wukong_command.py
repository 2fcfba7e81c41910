"""The command that a user types, with a home of its own."""

import os
import subprocess
import sys
from pathlib import Path

AS_PODS = Path(__file__).parent / "as_pods"
PODS = "WUKONG_TEST_PODS"
"""Names the file with the variables of each kind of pod."""

SMALL = [
    "name=small",
    "validation.min_pairs=50",
    "pretrain.epochs=2",
    "pretrain.batch_size=64",
    "finetune.epochs=1",
    "finetune.batch_size=64",
    "model.text.layers=2",
    "model.text.width=64",
    "model.text.heads=2",
    "model.image.image_size=64",
    "crawl.part_size=150",
    "registry.first=any",
]


class Wukong:
    """The ``wukong`` command with a home of its own."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.environment = environment

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        wukong = [str(Path(sys.executable).with_name("wukong"))]
        if PODS in self.environment:
            wukong = [sys.executable, str(AS_PODS / "command.py")]
        command = [*wukong, *arguments]
        own = {"WUKONG_HOME": str(self.home), "XDG_STATE_HOME": str(self.home.with_name("state")), "COLUMNS": "200"}
        environment = {**os.environ, **own, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def run(self, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        options = [value for value in overrides if value.startswith("--")]
        settings = [part for value in (*SMALL, *overrides) if value not in options for part in ("--set", value)]
        return self("run", "--config", "configs/demo.yaml", "--corpus-size", "400", "--name", name, *settings, *options)
