"""What a wrong key's message says: where the key stands, and which one may have been meant."""

from pathlib import Path

import pytest

from wukong.config import documents
from wukong.errors import ConfigError

FILE = """\
name: x
crawl: {queries: "file:///q", endpoint: "http://site.test"}
model:
  text:
    layers: 2
filter:
  split:
    holdouts:
      - {name: a, source: "*", captions: unseen}
      - name: b
        source: "*"
        captionss: any
"""


@pytest.mark.parametrize(
    ("change", "overrides", "said"),
    [
        ("", [], "filter.split.holdouts.1.captionss: unknown key; allowed here: *; did you mean "
         "filter.split.holdouts.1.captions? [FILE, line 12]"),
        ("seeed: 1", [], "seeed: unknown key; *; did you mean seed? [FILE, line 13]"),
        ("pretrain: {batch_size: 0}", [], "pretrain.batch_size: * (got 0) [FILE, line 13]"),
        ("", ["pretrain.epoch=3"], "pretrain.epoch: unknown key; *; did you mean pretrain.epochs? "
         "[--set pretrain.epoch]"),
        ("", ["model.layers=3"], "model.layers: unknown key; *; did you mean model.text.layers? [--set model.layers]"),
        ("", ["learning_rate=1"], "learning_rate: unknown key; *; did you mean pretrain.learning_rate or "
         "finetune.learning_rate? [--set learning_rate]"),
        ("", ["model.text.layers=none"], "model.text.layers: * (got 'none') [--set model.text.layers]"),
        ("", ["model.qqqqqq=3"], "model.qqqqqq: unknown key; *temperature, text [--set model.qqqqqq]"),
    ],
)  # fmt: skip
def test_a_mistake_is_found_where_it_stands(tmp_path: Path, change: str, overrides: list[str], said: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(FILE + change)
    with pytest.raises(ConfigError) as caught:
        documents.load(file, overrides)
    (line,) = (line for line in str(caught.value).splitlines() if line.strip().startswith(said.partition(":")[0] + ":"))
    parts = said.replace("FILE", str(file)).split("*")
    for part in parts:
        assert part in line, line
    assert line.endswith(parts[-1])


def test_the_file_that_counts_is_named(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: -1\nmodel: {embeding: 3}\n")
    (tmp_path / "own.yaml").write_text(FILE.partition("filter")[0] + "base: base.yaml\nseed: -2\n")
    with pytest.raises(ConfigError) as caught:
        documents.load(tmp_path / "own.yaml")
    assert f"(got -2) [{tmp_path / 'own.yaml'}, line 7]" in str(caught.value)
    assert f"did you mean model.embedding? [{tmp_path / 'base.yaml'}, line 2]" in str(caught.value)
