"""What starts with every component's pod stays small."""

import subprocess
import sys

HEAVY = ("torch", "ray", "polars", "pandas", "mlflow", "kubernetes", "great_expectations", "jieba", "cv2", "PIL", "kfp")


def test_a_component_begins_without_what_only_jobs_need() -> None:
    script = "import sys, components.stage, components.run_ends; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert [name for name in HEAVY if name in loaded] == []
