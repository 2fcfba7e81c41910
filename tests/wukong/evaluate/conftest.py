import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))  # released_models
sys.path.insert(0, str(Path(__file__).parent))  # transformers_models
