import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]

sys.path[:0] = [str(_TESTS / "train"), str(_TESTS / "model"), str(_TESTS)]
