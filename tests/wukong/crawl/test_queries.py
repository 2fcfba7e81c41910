"""The query list, compared with a simple implementation of longest match."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from wukong.commands.queries import app
from wukong.crawl import queries
from wukong.errors import ConfigError, DataError
from wukong.store import storage

letters = st.text("中国人民大学生", min_size=1, max_size=5)


def longest_match(words: set[str], text: str) -> dict[str, int]:
    counts = dict.fromkeys(words, 0)
    place, longest = 0, max(map(len, words))
    while place < len(text):
        for size in range(longest, 0, -1):
            if text[place : place + size] in words:
                counts[text[place : place + size]] += 1
                place += size
                break
        else:
            place += 1
    return counts


@given(st.sets(letters, min_size=1, max_size=12), st.text("中国人民大学生，a", max_size=60))
def test_words_are_counted_by_longest_match(words: set[str], text: str) -> None:
    encoded = sorted(word.encode() for word in words)
    counts = queries.count_words(encoded, [text.encode()])
    assert {word.decode(): int(n) for word, n in zip(encoded, counts, strict=True)} == longest_match(words, text)


def uri(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return storage.from_path(path)


def test_ranking(tmp_path: Path) -> None:
    vocabulary = uri(tmp_path / "v.txt", "中国\n人民\n中国人民\n大学\n天\n，\nabc\nT恤\n学生\n的话\n")
    corpus = uri(tmp_path / "c.txt", "中国人民在大学，大学的中国学生穿T恤。T恤！的话的话的话天天天天\n中国\n")
    stop = uri(tmp_path / "s.txt", "的话\n")
    ranked = queries.build(vocabulary, [corpus], stop_words=stop)
    assert ranked == [("T恤", 2), ("中国", 2), ("大学", 2), ("中国人民", 1), ("学生", 1)]
    assert queries.build(vocabulary, [corpus], stop_words=stop, limit=2) == ranked[:2]
    assert queries.build(vocabulary, [corpus], min_length=1, max_length=1) == [("天", 4)]


def test_word_vectors_are_read_as_a_vocabulary(tmp_path: Path) -> None:
    lines = "3 4\n中国 0.1 0.2 0.3 0.4\n大学 1 2 3 4\n</s> 0 0 0 0\n"
    corpus = uri(tmp_path / "c.txt", "中国大学中国")
    plain = queries.build(uri(tmp_path / "v.txt", lines), [corpus])
    packed = queries.build(uri(tmp_path / "v.txt.gz", gzip.compress(lines.encode())), [corpus])
    assert plain == packed == [("中国", 2), ("大学", 1)]


def test_all_formats_of_corpus_files(tmp_path: Path) -> None:
    text = "大学" * 3
    lines = json.dumps({"text": text}, ensure_ascii=False) + "\n\n" + json.dumps({"text": text}) + "\n"
    folder = tmp_path / "corpus"
    uri(folder / "a.txt", text)
    uri(folder / "b.txt.gz", gzip.compress(text.encode()))
    uri(folder / "sub" / "c.jsonl", lines)
    uri(folder / "d.jsonl.gz", gzip.compress(lines.encode()))
    vocabulary = uri(tmp_path / "v.txt", "大学")
    assert queries.build(vocabulary, [storage.from_path(folder)]) == [("大学", 3 + 3 + 6 + 6)]
    body = uri(tmp_path / "body.jsonl", json.dumps({"body": text}) + "\n")
    assert queries.build(vocabulary, [body], text_field="body") == [("大学", 3)]
    with pytest.raises(DataError, match=r"body\.jsonl line 1"):
        queries.build(vocabulary, [body])


def test_text_longer_than_a_chunk(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(queries, "CHUNK_BYTES", 100)
    vocabulary = uri(tmp_path / "v.txt", "大学")
    many_lines = uri(tmp_path / "lines.txt", "大学生活\n" * 200)
    assert queries.build(vocabulary, [many_lines]) == [("大学", 200)]
    one_line = uri(tmp_path / "line.txt", "大学" * 1000 + "，")
    ((_, count),) = queries.build(vocabulary, [one_line])
    assert 1000 - 6000 // 100 - 1 <= count <= 1000, "only words across a chunk's end are lost"
    pieces = list(queries._texts([one_line], "text"))
    assert b"".join(pieces).decode() == "大学" * 1000 + "，"
    assert all(piece.decode() is not None for piece in pieces), "no chunk ends inside a character"


def test_unusable_inputs_are_explained(tmp_path: Path) -> None:
    vocabulary = uri(tmp_path / "v.txt", "abc\n，\n")
    with pytest.raises(ConfigError, match="no Chinese word"):
        queries.build(vocabulary, [vocabulary])
    with pytest.raises(ConfigError, match="corpus is empty"):
        queries.build(uri(tmp_path / "w.txt", "大学"), [storage.from_path(tmp_path / "none")])


def test_reading_a_list(tmp_path: Path) -> None:
    listed = uri(tmp_path / "q.txt", "\ufeff大学\n\n  中国 \n大学\n学生\t17\n")
    assert queries.read_queries(listed, 10) == ["大学", "中国", "学生"]
    assert queries.read_queries(listed, 2) == ["大学", "中国"]
    with pytest.raises(ConfigError, match="UTF-8"):
        queries.read_queries(uri(tmp_path / "gbk.txt", "大学".encode("gbk")), 10)
    with pytest.raises(ConfigError, match="no query"):
        queries.read_queries(uri(tmp_path / "empty.txt", "\n"), 10)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_word_lists_of_every_encoding_and_line_end(tmp_path: Path, encoding: str, end: str) -> None:
    words = [f"{word}{end}".encode(encoding) for word in ("中国大学", "大学")]
    mark = len("".encode(encoding))
    data = words[0] + words[1][mark:]
    (tmp_path / "words.txt").write_bytes(data)
    listed = storage.from_path(tmp_path / "words.txt")
    if encoding != "gb18030":
        assert queries.read_queries(listed, 10) == ["中国大学", "大学"]
    assert queries.build(listed, [listed]) == [("中国大学", 1), ("大学", 1)]
    (tmp_path / "stop.txt").write_bytes(words[1])
    stop = storage.from_path(tmp_path / "stop.txt")
    assert queries.build(listed, [listed], stop_words=stop) == [("中国大学", 1)]


def test_a_line_that_is_not_utf8_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed = uri(
        tmp_path / "q.txt",
        "大学\n".encode() + "中国".encode("gbk") + b"\n" + b"\xed\xa0\x80\n" + "学生\n天\n地\n".encode(),
    )
    assert queries.read_queries(listed, 10) == ["大学", "学生", "天", "地"]
    assert "2 lines are not UTF-8 and left out; the first is 2" in caplog.text


def test_the_command(tmp_path: Path) -> None:
    uri(tmp_path / "v.txt", "中国\n大学\n")
    uri(tmp_path / "c.txt", "中国大学中国")
    arguments = ["build", "--vocabulary", str(tmp_path / "v.txt"), "--corpus", str(tmp_path / "c.txt")]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out.txt")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out.txt").read_text() == "中国\n大学\n"
    assert "2 queries" in result.output
    CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out.txt"), "--counts"])
    assert (tmp_path / "out.txt").read_text() == "中国\t2\n大学\t1\n"
