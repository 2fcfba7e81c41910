"""What starts with every component's pod stays small."""

import subprocess
import sys

HEAVY = ("torch", "ray", "polars", "pandas", "mlflow", "kubernetes", "great_expectations", "jieba", "cv2", "PIL", "kfp")


def test_a_component_begins_without_what_only_jobs_need() -> None:
    script = "import sys, components.stage, components.run_ends; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert [name for name in HEAVY if name in loaded] == []


def test_what_makes_a_rayjob_needs_the_kubernetes_client_and_nothing_else_that_is_large() -> None:
    modules = "components.stage, wukong.places, wukong.mlflow_rest, requests, ray_jobs.launch.kuberay"
    script = f"import sys, {modules}; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert [name for name in HEAVY if name in loaded] == ["kubernetes"]
