"""Layouts of files of evaluation sets: parsers on any text, and images of every kind."""

import base64
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import published_sets as published
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wukong.errors import DataError
from wukong.evaluate.formats import caption_lines, chinese_clip, folders, json_list, pictures

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=8)
ID = st.text("abcdefghijklmnop0123456789_.-", min_size=1, max_size=20)


@given(ID, st.sampled_from(["", "zhb", "zhm", "zhc"]), st.integers(0, 99), st.lists(WORDS, min_size=1),
       st.sampled_from([" ", "\t", " \t"]), st.sampled_from(["", "\r", " ", "\r\n"]))  # fmt: skip
def test_a_caption_line_gives_back_its_parts(image, kind, number, words, between, end):
    caption = " ".join(words)
    line = f"{image}#{kind}#{number}" if kind else f"{image}#{number}"
    assert caption_lines.parse(f"{line}{between}{caption}{end}") == (image, kind, number, caption)


@given(st.text())
def test_no_line_makes_the_parser_raise(line):
    parsed = caption_lines.parse(line)
    assert parsed is None or (parsed.image and parsed.number >= 0)


@given(st.lists(st.lists(st.tuples(WORDS, st.sampled_from(["n", "v", "wd", "URL"])), min_size=1), min_size=1))
def test_segmented_words_are_joined(clauses):
    tagged = "  ".join(" ".join(f"{word}:{tag}" for word, tag in clause) for clause in clauses)
    plain = "，".join("".join(word for word, _ in clause) for clause in clauses)
    assert caption_lines.joined(tagged, parts_of_speech=True) == plain
    untagged = "  ".join(" ".join(word for word, _ in clause) for clause in clauses)
    assert caption_lines.joined(untagged) == plain


@given(st.lists(st.tuples(st.text(max_size=30), st.lists(st.integers(0, 4), max_size=3))))
def test_every_query_is_kept(queries):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "queries.jsonl"
        rows = [json.dumps({"text": words, "image_ids": of}, ensure_ascii=False) for words, of in queries]
        path.write_bytes("\r\n".join(rows).encode("utf-8", "surrogatepass"))
        found = chinese_clip.read_texts(path, ["0", "1", "2", "3", "4"], text="text", images="image_ids")
    assert found == [(words.strip(), tuple(dict.fromkeys(of))) for words, of in queries]


@given(st.lists(st.integers(0, 2000), max_size=5), st.booleans(), st.booleans(), st.booleans())
def test_a_table_of_images_is_indexed_by_bytes(sizes, url_safe, crlf, padded):
    contents = [bytes(np.random.default_rng(size).integers(0, 256, size, np.uint8)) for size in sizes]
    contents.append(published.picture(3))
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imgs.tsv"
        end = b"\r\n" if crlf else b"\n"
        rows = [f"图{i}\t".encode() + encode(each)
                for i, each in enumerate(contents)]  # fmt: skip
        path.write_bytes(end.join(row if padded else row.rstrip(b"=") for row in rows))
        ids, images = chinese_clip.read_images(path)
        assert ids == [f"图{i}" for i in range(len(contents))]
        data = path.read_bytes()
        for (_, offset, length), content in zip(images.of.tolist(), contents, strict=True):
            assert images.unpack is not None
            assert images.unpack(data[offset : offset + length]) == content


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4)), st.integers(1, 40),
       st.sampled_from([None, 2]), st.booleans())  # fmt: skip
def test_a_long_list_is_read_as_the_json_module_does(values, read, indent, ascii_only):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "_READ", read)
        path = Path(folder) / "list.json"
        path.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), "utf-8")
        assert list(json_list.elements(path)) == json.loads(path.read_text("utf-8"))


@given(st.integers(1, 200))
def test_a_truncated_list_is_an_error_and_never_shorter(cut):
    content = json.dumps([{"image_id": f"{i}.jpg", "caption": ["一", "二"]} for i in range(9)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.json"
        path.write_text(content[:-cut], "utf-8")
        with pytest.raises(DataError, match="ends within its list"):
            list(json_list.elements(path))


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))), st.booleans())
def test_lines_end_only_at_line_ends(lines, crlf):
    # U+2028 and U+0085 are within captions; str.splitlines cuts at them.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.txt"
        path.write_bytes("".join(line + ("\r\n" if crlf else "\n") for line in lines).encode())
        expected = list(lines)
        if expected and expected[0].startswith("\ufeff"):
            expected[0] = expected[0].removeprefix("\ufeff")
        assert folders.lines(path) == expected


def test_text_that_is_not_utf8_is_refused_with_its_place(tmp_path):
    (tmp_path / "gbk.txt").write_bytes("一只狗".encode("gbk"))
    with pytest.raises(DataError, match=r"gbk\.txt is not UTF-8 at byte 4"):
        folders.lines(tmp_path / "gbk.txt")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_gray_cmyk_palette_and_transparent_images_become_rgb():
    gray = pictures.decode(encoded(Image.new("L", (4, 3), 77), "PNG"), "x")
    assert (gray.mode, gray.size, gray.getpixel((0, 0))) == ("RGB", (4, 3), (77, 77, 77))
    cmyk = pictures.decode(encoded(Image.new("RGB", (8, 8), (200, 30, 30)).convert("CMYK"), "JPEG", quality=100), "x")
    assert np.abs(np.array(cmyk.getpixel((0, 0))) - (200, 30, 30)).max() < 6
    palette = pictures.decode(encoded(Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4), "PNG"), "x")
    assert palette.getpixel((0, 0)) == (10, 200, 30)
    clear = pictures.decode(encoded(Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG"), "x")
    assert clear.getpixel((0, 0)) == (10, 20, 30)  # as everywhere: alpha is dropped


def test_16_bit_gray_keeps_its_shades():
    shades = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    image = pictures.decode(encoded(Image.fromarray(shades), "PNG"), "x")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_the_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = pictures.decode(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif), "x")
    assert image.size == (8, 4)  # as torchvision, CLIP_benchmark and Chinese-CLIP see it


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF89a", published.picture(1, size=(64, 64))[:400]])
def test_what_is_no_complete_image_is_an_error(data):
    with pytest.raises(DataError, match=r"n/1\.jpg cannot be decoded"):
        pictures.decode(data, "n/1.jpg")
