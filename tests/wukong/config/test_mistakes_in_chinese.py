"""What a Chinese reader is told of a wrong key or value: all that the English message names, in no English sentence."""

import re
from pathlib import Path

import pytest

from wukong.config import documents
from wukong.errors import ConfigError
from wukong.runtime import language

FILE = 'name: x\ncrawl: {queries: "file:///q", endpoint: "http://site.test"}\n'
SENTENCE = re.compile(r"[a-z]+ [a-z]+ [a-z]+")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("filter: {clean_mark: true}", ["filter.clean_mark：未知的键", "mask_names, max_", "filter.clean_markup？"]),
        ("pretrain: {learning: 1}", ["pretrain.learning：", "epochs, epsilon", "pretrain.learning_rate"]),
        ("release: {file: 3}", ["release.file：未知的键；此处可用：address, contact, files, licence", "release.files"]),
        ("seed: -1", ["seed：应大于或等于 0（实际为 -1）"]),
        ("seed: many", ["seed：应为整数", "'many'"]),
        ("features: {dtype: int4}", ["features.dtype：", "'float16' 或 'int8'", "'int4'"]),
        ("registry: {level: 0.5}", ["registry.level：应小于 0.5（实际为 0.5）"]),
        ("name: A B", ["name：", "'A B'", "^[a-z0-9][a-z0-9-]{0,40}$"]),
        ("model: {text: {heads: 5, width: 8}}", ["model.text：heads 为 5", "width（8）", "1, 2, 4, 8"]),
        ("storage: http://a/b", ["storage：", "'^(s3|file)://.+'", "'http://a/b'"]),
        ("validation: {reference: a/b}", ["validation.reference：'a/b' 不是 URI", "file:///ABSOLUTE/PATH"]),
        ("pretrain: {batch_size: 7}", ["batch_size 为 7", "2 的倍数", "例如 8"]),
    ],
)  # fmt: skip
def test_a_message_names_key_value_and_what_is_allowed(tmp_path: Path, line: str, named: list[str]) -> None:
    file = tmp_path / "x.yaml"
    key = line.partition(":")[0]
    file.write_text("".join(each for each in FILE.splitlines(True) if not each.startswith(f"{key}:")) + line)
    with pytest.raises(ConfigError) as caught:
        documents.load(file)
    said = language.chinese(str(caught.value))
    assert said.startswith(f"{file} 不是有效的实验：\n")
    assert not [each for each in named if each not in said], said
    assert not SENTENCE.search(said.replace(str(file), "")), said
    if "reference" not in line:  # what may concern several sections has no place
        assert re.search(re.escape(f"[{file}，第 ") + r"[123] 行\]", said), said


def test_a_file_that_is_no_yaml_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("name: x\nname: y\n")
    with pytest.raises(ConfigError) as caught:
        documents.load(file)
    assert language.chinese(str(caught.value)) == f"{file} 不是有效的 YAML：第 2 行：'name' 写了两次"
