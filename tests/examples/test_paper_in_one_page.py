"""The page of the paper: one screen, the values of ``configs/paper/vit-l.yaml``; ``test_small_papers.py`` runs it."""

import re
import runpy
from pathlib import Path

from wukong.config import documents

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "paper_in_one_page.py"


def test_the_paper_is_one_screen() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    steps = [match[1] for line in lines if (match := re.match(r"    # (\d.*|the gate): ", line))]
    assert steps == ["3", "3.1, 3.2", "the gate", "4", "4.4, 5.1", "5.2, 5.3", "5.4"]


def test_its_values_are_those_of_the_papers_experiment() -> None:
    described = runpy.run_path(str(PAGE))["PAPER"]
    assert described == documents.load(ROOT / "configs" / "paper" / "vit-l.yaml")
