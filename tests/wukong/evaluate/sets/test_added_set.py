"""A data set is one file: with nothing but a file more in ``wukong/evaluate/sets`` it is known, read and measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[4]
DICE = '''
"""Dice: a folder for each class, and no split."""

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.pictures import Files
from wukong.evaluate.published import Labelled


def _read(folder, split, classes):
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return Labelled(paths, [classes.index(path.split("/")[0]) for path in paths], Files(folder, paths))


SET = Classification(
    name="my-dice",
    title="My dice",
    splits={"test": 6},
    how_to_get=HowToGet(("dice.zip of https://example.org",), "one/1.png", "CC0"),
    read_published=_read,
    names=(("one", "one", "一"), ("two", "two", "二")),
)
'''
PROGRAM = """
import json, sys
from pathlib import Path

from test_tasks import Knowing
from wukong.evaluate import set_folders, sets, tasks
from wukong.evaluate.protocol import PROTOCOLS

root, rules = Path(sys.argv[1]), PROTOCOLS["clip-benchmark"]
assert sets.__file__.startswith(str(root.parent)), sets.__file__
data = tasks.read(["my-dice"], {}, root, rules, skip=False).data["my-dice"]
outcome = tasks.measure(Knowing(["一", "二"]), data, rules)
print(json.dumps([set_folders.NAMES, sets.chosen("my-dice"), outcome.as_json("pretrained"), sets.missing(["muge"])]))
"""


def test_a_file_more_is_a_set_more(tmp_path: Path) -> None:
    package = tmp_path / "wukong"
    (package / "evaluate" / "sets").mkdir(parents=True)
    for folder in ("", "evaluate", "evaluate/sets"):
        for entry in (ROOT / "wukong" / folder).iterdir():
            if entry.name not in ("evaluate", "sets", "__pycache__"):
                (package / folder / entry.name).symlink_to(entry)
    (package / "evaluate" / "sets" / "my_dice.py").write_text(DICE, "utf-8")
    for number in range(6):
        name = ("one", "two")[number % 2]
        (tmp_path / "data" / "my-dice" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number % 2, 0, 0)).save(tmp_path / "data" / "my-dice" / name / f"{number}.png")
    paths = os.pathsep.join(map(str, (tmp_path, ROOT / "tests/wukong/evaluate", ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names, chosen, entry, missing = json.loads(done.stdout)
    assert "my-dice" in names and chosen == ["my-dice"] and "dice.zip" in missing["my-dice"]
    assert (entry["title"], entry["kind"], entry["sizes"]) == ("My dice", "classification", {"images": 6, "classes": 2})
    assert entry["results"]["top1"]["value"] == 1


def test_sets_are_read_without_torch() -> None:
    program = "import sys; from wukong.evaluate import sets; assert sets.REGISTRY; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
