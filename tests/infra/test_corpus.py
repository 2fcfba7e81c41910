import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra import corpus
from infra.corpus import catalogue, packages, pictures, querylist, sources
from infra.corpus.packages import Package, PackageError
from infra.corpus.sources import Draft, Reading, Source
from wukong.errors import WukongError

CAPTION = "A frog.\nde.utf8=Ein Frosch.\nzh_CN.utf8=青蛙。\nzh_TW.utf8=青蛙。(繁)\n"


def write_stamp(folder: Path, name: str, size: tuple[int, int], caption: bytes | None, mode: str = "RGBA") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, "red").save(folder / f"{name}.png")
    if caption is not None:
        (folder / f"{name}.txt").write_bytes(caption)


@pytest.mark.parametrize(
    ("data", "title"),
    [
        (CAPTION.encode(), "青蛙。"),
        (b"\xef\xbb\xbf" + CAPTION.encode(), "青蛙。"),
        (CAPTION.replace("\n", "\r\n").encode(), "青蛙。"),
        ("A frog.\nzh_CN.utf8=a=b，蛙\n".encode(), "a=b，蛙"),
        ("A frog.\nzh_TW.utf8=青蛙\n".encode(), None),
        (b"A frog.\nzh_CN.utf8=\n", None),
        (b"", None),
    ],
)
def test_stamp_title(data: bytes, title: str | None) -> None:
    assert sources.stamp_title(data) == title


@pytest.mark.parametrize("encoding", ["gbk", "big5", "utf-16"])
def test_a_caption_file_in_another_encoding_is_left_out_and_counted(tmp_path: Path, encoding: str) -> None:
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    write_stamp(stamps / "animals", "frog", (300, 300), CAPTION.encode())
    write_stamp(stamps / "animals", "toad", (300, 300), "A toad.\nzh_CN.utf8=蟾蜍。\n".encode(encoding))
    reading = sources.read_stamps({packages.STAMPS.name: tmp_path})
    assert [draft.title for draft in reading.drafts] == ["青蛙。"]
    assert reading.left_out == {"caption file not UTF-8": 1}


def test_stamps_are_drawn_depending_on_their_size(tmp_path: Path) -> None:
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    folder = stamps / "animals/birds/cartoon"
    write_stamp(folder, "large", (300, 201), CAPTION.encode())
    write_stamp(folder, "middle", (64, 200), CAPTION.encode())
    write_stamp(folder, "small", (63, 400), CAPTION.encode())
    write_stamp(folder, "mirrored", (300, 300), None)
    (folder / "text.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><text>$</text></svg>")
    (folder / "text.txt").write_text(CAPTION)
    reading = sources.read_stamps({packages.STAMPS.name: tmp_path})
    assert {draft.path: draft.how for draft in reading.drafts} == {
        "/tuxpaint/animals/birds/cartoon/large.png": "copy",
        "/tuxpaint/animals/birds/cartoon/middle": "stamp",
        "/tuxpaint/animals/birds/cartoon/small.png": "copy",
    }
    assert {draft.keywords for draft in reading.drafts} == {("动物", "鸟", "卡通")}
    assert reading.left_out == {"no caption file": 1, "SVG with text": 1}


def emoji_packages(root: Path) -> dict[str, Path]:
    names = {
        "😀": {"default": ["嘿嘿", "脸"], "tts": ["嘿嘿"]},
        "❤": {"default": ["爱"], "tts": ["红心"]},
        "👁‍🗨": {"tts": ["眼睛对话框"]},
        "🀄": {"default": ["麻将"]},
    }
    derived = {"🇨🇳": {"default": ["旗"], "tts": ["旗: 中国"]}}
    noto = {
        "width": 128,
        "height": 128,
        "icons": {
            "grin": {"body": '<rect width="128" height="128" fill="#f00"/>'},
            "wide": {"body": '<rect width="64" height="32" fill="#00f"/>', "width": 64, "height": 32},
        },
    }
    files = {
        packages.CLDR: ("annotations/zh/annotations.json", {"annotations": {"annotations": names}}),
        packages.CLDR_DERIVED: (
            "annotationsDerived/zh/annotations.json",
            {"annotationsDerived": {"annotations": derived}},
        ),
        packages.NOTO: ("icons.json", noto),
    }
    folders = {package.name: root / package.folder for package in (*files, packages.FLUENT)}
    for package, (path, value) in files.items():
        target = folders[package.name] / "package" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(value), encoding="utf-8")
    characters = {"1f600": "grin", "2764-fe0f": "wide", "1f600-1f3fb": "grin", "1f004": "grin", "1f601": "gone"}
    (folders[packages.NOTO.name] / "package/chars.json").write_text(json.dumps(characters))
    assets = folders[packages.FLUENT.name] / "package/assets"
    assets.mkdir(parents=True)
    for code in (
        "1f600",
        "2764",
        "1f441-fe0f-200d-1f5e8-fe0f",
        "1f1e8-1f1f3",
        "1f44b-1f3fb",
        "1f3f4-e0067_e0062",
        "1f004",
    ):
        Image.new("RGBA", (256, 256)).save(assets / f"{code}.webp")
    return folders


def test_emoji_are_named_by_their_characters(tmp_path: Path) -> None:
    folders = emoji_packages(tmp_path)
    fluent = sources.read_fluent(folders)
    assert {draft.path: draft.title for draft in fluent.drafts} == {
        "/fluent/1f600.webp": "嘿嘿",
        "/fluent/2764.webp": "红心",
        "/fluent/1f441-fe0f-200d-1f5e8-fe0f.webp": "眼睛对话框",
        "/fluent/1f1e8-1f1f3.webp": "旗: 中国",
    }
    assert fluent.left_out == {"skin tone variant": 1, "no CLDR name": 2}
    noto = sources.read_noto(folders)
    assert {draft.path: (draft.title, draft.keywords) for draft in noto.drafts} == {
        "/noto/1f600": ("嘿嘿", ("嘿嘿", "脸")),
        "/noto/2764-fe0f": ("红心", ("爱",)),
    }


def test_iconify_icons_keep_their_view_box(tmp_path: Path) -> None:
    (wide,) = (draft for draft in sources.read_noto(emoji_packages(tmp_path)).drafts if draft.title == "红心")
    assert wide.svg is not None
    assert 'viewBox="0 0 64 32"' in wide.svg


MODULE = """import { IconWrapper } from '../runtime';
export default IconWrapper('half', function (props) {
  return '<?xml version="1.0" encoding="UTF-8"?>' + '<svg width="' + props.size + '" height="' + props.size + \
'" viewBox="0 0 48 48" fill="none" xmlns="http://www.w3.org/2000/svg">' + '<g id="' + props.id + '8a">' + \
'<rect width="24" height="48" fill="' + props.colors[1] + '"/><rect x="24" width="24" height="48" fill="' + \
props.colors[3] + '"/>' + '</g></svg>';
});
"""


def test_iconpark_modules_are_drawn_in_four_colours(tmp_path: Path) -> None:
    drawing = sources.iconpark_svg(MODULE)
    assert drawing is not None
    name, svg = drawing
    assert name == "half"
    assert sources.iconpark_svg("export var DEFAULTS = {};") is None
    draft = Draft("iconpark", "/iconpark/x/half", "一半", (), "Apache-2.0", "svg", svg=svg)
    size = pictures.draw(draft, tmp_path / "half.png")
    with Image.open(tmp_path / "half.png") as image:
        assert image.size == size
        pixels = np.asarray(image.convert("RGB"))
    assert tuple(pixels[5, 5]) == (0x2F, 0x88, 0xFF)
    assert tuple(pixels[5, -5]) == (0x43, 0xCC, 0xF8)


def test_a_stamp_is_centred_on_white_without_dark_edges() -> None:
    # The hidden colour of transparent pixels is black; it must not appear after scaling.
    stamp = Image.new("RGBA", (100, 50), (0, 0, 0, 0))
    stamp.paste((255, 255, 255, 255), (20, 10, 80, 40))
    page = np.asarray(pictures.on_canvas(stamp, 300))
    assert page.shape == (300, 300, 3)
    assert page.min() > 250
    bar = np.asarray(pictures.on_canvas(Image.new("RGB", (100, 20), "black"), 300)).min(axis=2) < 128
    rows, columns = np.flatnonzero(bar.any(axis=1)), np.flatnonzero(bar.any(axis=0))
    assert (columns.min() + columns.max(), rows.min() + rows.max()) == pytest.approx((299, 299), abs=1)
    assert columns.size / rows.size == pytest.approx(5, rel=0.05)


def drafts_of(origin: Path, count: int = 12) -> Reading:
    square = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="{}"/></svg>'
    reading = Reading()
    for index in range(count):
        common = (f"圆{index // 2}", ("形状",), "MIT")
        if index % 3 == 0:
            reading.drafts.append(Draft("a", f"/a/{index}", *common, "stamp", origin=origin))
        elif index % 3 == 1:
            reading.drafts.append(Draft("a", f"/a/{index}", *common, "svg", svg=square.format(1 + index % 4)))
        else:
            reading.drafts.append(Draft("a", f"/a/{index}.png", *common, "copy", origin=origin))
    return reading


def prepare(cache: Path, **options: object) -> corpus.Corpus:
    origin = cache / "origin.png"
    cache.mkdir(exist_ok=True)
    Image.new("RGBA", (90, 70), (10, 200, 30, 128)).save(origin)
    source = Source("a", (), 12, lambda _: drafts_of(origin))
    return corpus.prepare(cache, progress=False, from_sources=[source], **options)  # type: ignore[arg-type]


def bytes_of(made: corpus.Corpus) -> list[bytes]:
    return [made.catalogue.read_bytes(), *(made.file(entry).read_bytes() for entry in made.entries)]


def test_equal_sources_give_equal_bytes_also_after_an_interruption(tmp_path: Path) -> None:
    first = prepare(tmp_path / "one")
    second = prepare(tmp_path / "two")
    assert bytes_of(first) == bytes_of(second)
    drawn = [second.file(entry) for entry in second.entries if not entry.file.startswith("origin")]
    second.catalogue.unlink()
    for file in drawn[::2]:
        file.unlink()
    assert bytes_of(prepare(tmp_path / "two")) == bytes_of(first)
    assert not list((tmp_path / "two").rglob("*.partial"))


def test_a_catalogue_can_be_read_back(tmp_path: Path) -> None:
    made = prepare(tmp_path / "one")
    assert corpus.load(made.catalogue).entries == made.entries
    for entry in made.entries:
        with Image.open(made.file(entry)) as image:
            assert (image.size, Image.MIME[image.format or ""]) == ((entry.width, entry.height), entry.mime)


def test_a_slice_keeps_concepts_whole(tmp_path: Path) -> None:
    whole, part = prepare(tmp_path / "one"), prepare(tmp_path / "one", limit=7)
    assert 0 < len(part.entries) <= 7
    titles = {entry.title for entry in part.entries}
    assert set(part.entries) == {entry for entry in whole.entries if entry.title in titles}
    assert part.catalogue != whole.catalogue


def test_a_corpus_that_is_complete_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = tmp_path / "origin.png"
    read: list[Mapping[str, Path]] = []
    Image.new("RGB", (300, 300)).save(origin)

    def reading(folders: Mapping[str, Path]) -> Reading:
        read.append(folders)
        return drafts_of(origin)

    all_sources = (Source("a", (), 12, reading),)
    monkeypatch.setattr(catalogue, "SOURCES", all_sources)

    def prepare(limit: int | None = None) -> corpus.Corpus:
        return corpus.prepare(tmp_path, progress=False, from_sources=all_sources, limit=limit)

    first = prepare()
    assert prepare() == first and len(read) == 1
    assert prepare(limit=7) != first and len(read) == 2, "a slice is another catalogue"
    first.file(first.entries[0]).unlink()
    assert prepare() == first and len(read) == 3, "a picture that is gone is drawn again"
    assert first.file(first.entries[0]).is_file()


def test_a_missing_source_is_reported_and_the_rest_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = tmp_path / "origin.png"
    Image.new("RGB", (300, 300)).save(origin)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for mirror in ("WUKONG_DEBIAN_MIRROR", "NPM_CONFIG_REGISTRY"):
        monkeypatch.setenv(mirror, "http://127.0.0.1:9/")
    good = Source("a", (), 12, lambda _: drafts_of(origin))
    made = corpus.prepare(tmp_path, progress=False, from_sources=[*sources.SOURCES, good])
    assert {entry.source for entry in made.entries} == {"a"}
    assert len(made.problems) == 4
    assert made.missing == ("tuxpaint", "fluent", "noto", "iconpark")
    assert any("tuxpaint is left out" in problem and "apt-get" in problem for problem in made.problems)
    assert any("noto is left out" in problem and "NPM_CONFIG_REGISTRY" in problem for problem in made.problems)
    with pytest.raises(WukongError, match="none of the demo corpus's sources"):
        corpus.prepare(tmp_path, progress=False)


def test_a_full_disk_gives_a_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**20})())
    with pytest.raises(PackageError, match=r"1 MiB free at .* WUKONG_CACHE"):
        packages.fetch(packages.NOTO, tmp_path)


def test_a_cache_that_cannot_be_written_gives_a_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WukongError, match="WUKONG_CACHE"):
        corpus.prepare(tmp_path / "file" / "cache", progress=False)


def archive_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


TGZ = archive_of({"package/a.json": b"{}", "package/b.json": b"[]", "package/c.js": os.urandom(40_000)})


def publish(folder: Path, archive: bytes = TGZ) -> None:
    """A fake ``npm`` whose ``pack`` writes an archive and counts its calls."""
    (folder / "archive.tgz").write_bytes(archive)
    npm = folder / "bin" / "npm"
    npm.parent.mkdir(exist_ok=True)
    npm.write_text(
        f"#!{sys.executable}\nimport shutil\n"
        f"with open({str(folder / 'calls')!r}, 'a') as log: log.write('x')\n"
        f"shutil.copy({str(folder / 'archive.tgz')!r}, 'package-1.tgz')\n"
    )
    npm.chmod(0o755)


def package(archive: bytes = TGZ) -> Package:
    digest, path = hashlib.sha256(archive).hexdigest(), "@scope/thing/-/thing-1.tgz"
    return Package("npm", "@scope/thing", "1", path, len(archive), digest, "MIT", ("package/*.json",), 2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_package_is_fetched_once_and_again_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    wanted, cache = package(), tmp_path / "cache"
    folder = packages.fetch(wanted, cache)
    assert names(folder) == ["a.json", "b.json"]
    packages.fetch(wanted, cache)
    assert (tmp_path / "calls").read_text() == "x"
    (folder / "package/a.json").unlink()
    packages.fetch(wanted, cache)
    assert (tmp_path / "calls").read_text() == "xx"
    assert (folder / "package/a.json").exists()
    assert sorted(path.name for path in cache.iterdir()) == [wanted.folder]


class Registry:
    """A registry on loopback that serves one archive; it can interrupt answers and ignore ranges."""

    def __init__(self, archive: bytes) -> None:
        self.archive = archive
        self.ranges: list[str | None] = []
        self.cut: list[int] = []  # bytes after which an answer breaks off, for the first answers
        self.ignores_ranges = False
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers["Range"]
                registry.ranges.append(asked)
                if not self.path.endswith("/thing-1.tgz"):
                    self.send_error(404)
                    return
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and not registry.ignores_ranges else 0
                body = registry.archive[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: registry.cut.pop(0)] if registry.cut else body)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry, on a machine without the client of any registry."""
    made = Registry(TGZ)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", made.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_without_a_client_a_package_is_downloaded_over_http(registry: Registry, tmp_path: Path) -> None:
    assert names(packages.fetch(package(), tmp_path / "cache")) == ["a.json", "b.json"]
    assert registry.ranges == [None]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [package().folder]


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_an_interrupted_download_continues(registry: Registry, tmp_path: Path, ignores_ranges: bool) -> None:
    registry.cut, registry.ignores_ranges = [20_000], ignores_ranges
    assert names(packages.fetch(package(), tmp_path / "cache")) == ["a.json", "b.json"]
    assert registry.ranges == [None, f"bytes={packages._BLOCK}-"]


def test_a_download_continues_after_a_killed_fetch(registry: Registry, tmp_path: Path) -> None:
    scratch = tmp_path / "cache" / f".fetching-{package().folder}"
    scratch.mkdir(parents=True)
    (scratch / "archive.partial").write_bytes(TGZ[:5000])
    assert packages.received_bytes(package(), tmp_path / "cache") == 5000
    packages.fetch(package(), tmp_path / "cache")
    assert registry.ranges == ["bytes=5000-"]
    assert packages.received_bytes(package(), tmp_path / "cache") == len(TGZ)


@pytest.mark.parametrize(
    ("served", "said"),
    [
        (TGZ + b"more", "bytes received instead of"),
        (bytes(len(TGZ)), "SHA-256"),
        (TGZ[:-1], "bytes received instead of"),
    ],
    ids=["longer", "other", "shorter"],
)
def test_another_archive_than_the_pinned_one_is_refused(
    registry: Registry, tmp_path: Path, served: bytes, said: str
) -> None:
    registry.archive = served
    with pytest.raises(PackageError, match=rf"there is no npm.*{said}.*NPM_CONFIG_REGISTRY"):
        packages.fetch(package(), tmp_path / "cache")
    assert not packages.is_complete(package(), tmp_path / "cache")
    registry.archive = TGZ
    assert packages.fetch(package(), tmp_path / "cache").exists(), "bytes received before do no harm"


def test_a_client_that_gives_another_archive_is_skipped(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, archive_of({"package/a.json": b"{}", "package/b.json": b"other"}))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    folder = packages.fetch(package(), tmp_path / "cache")
    assert (folder / "package/b.json").read_bytes() == b"[]"
    assert (tmp_path / "calls").read_text() == "x"


def test_a_missing_file_in_the_registry_is_reported(registry: Registry, tmp_path: Path) -> None:
    wanted = replace(package(), path="@scope/thing/-/other.tgz")
    with pytest.raises(PackageError, match="404"):
        packages.fetch(wanted, tmp_path / "cache")
    assert len(registry.ranges) == 1, "a missing file is not requested again"


@pytest.mark.parametrize("name", ["package/../../out.json", "/package/out.json"])
def test_a_member_with_a_path_outside_is_not_unpacked(registry: Registry, tmp_path: Path, name: str) -> None:
    archive = registry.archive = archive_of({"package/a.json": b"{}", name: b"[]"})
    wanted = replace(package(archive), keep=("package/*.json", "/package/*.json"))
    with pytest.raises(PackageError, match="is outside its folder"):
        packages.fetch(wanted, tmp_path / "cache")
    assert not list(tmp_path.rglob("out.json"))


@pytest.mark.long
@pytest.mark.parametrize("way", [packages._by_apt_with_private_lists, packages._by_https])
def test_the_debian_archive_by_each_download_method(way: Callable[[Package, Path], Path], tmp_path: Path) -> None:
    """The real archive. The machine's own package lists are not tested: only one release has the package."""
    if way is packages._by_apt_with_private_lists and shutil.which("apt-get") is None:
        pytest.skip("there is no apt-get")
    archive = way(packages.STAMPS, tmp_path)
    packages._check_digest(archive, packages.STAMPS)
    packages._unpack(archive, tmp_path / "unpacked", packages.STAMPS)
    assert packages._count_files(tmp_path / "unpacked", packages.STAMPS) == packages.STAMPS.files


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [packages.ICONPARK, packages.CLDR_DERIVED])
def test_npm_archives_over_https(wanted: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real registry, with the pinned paths."""
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    packages._check_digest(packages._by_https(wanted, tmp_path), wanted)


def test_queries_are_ranked_by_frequency(tmp_path: Path) -> None:
    def entry(title: str, *keywords: str) -> corpus.Entry:
        return corpus.Entry("a", f"/{title}", "f", title, keywords, "MIT", 300, 300, "image/png")

    made = corpus.Corpus(tmp_path, (entry("黑猫", "动物"), entry("猫", "动物", "猫科动物"), entry("OK键", "键盘 ok")))
    with_room = corpus.Corpus(tmp_path, (*made.entries, *(entry("OK") for _ in range(20))))
    words = corpus.queries(with_room)
    assert words[0] == "动物"
    assert {"猫", "黑猫", "猫科动物", "键盘"} <= set(words)
    assert not any(word.isascii() for word in words)
    assert corpus.queries(made) == words[:3], "as many as there are images"
    uri = (tmp_path / "queries.txt").as_uri()
    assert querylist.upload_queries(made, uri) == 3
    assert (tmp_path / "queries.txt").read_text(encoding="utf-8").splitlines() == words[:3]


@pytest.mark.slow
def test_the_real_corpus_has_the_expected_content() -> None:
    """Downloads the real packages if the cache lacks them, and draws a small slice."""
    made = corpus.prepare(limit=200, progress=False)
    if made.problems:
        pytest.skip("; ".join(made.problems))
    counts = {
        source.name: len(sources.read(source, corpus.cache_folder() / "packages").drafts) for source in sources.SOURCES
    }
    assert counts == {"tuxpaint": 1173, "fluent": 1868, "noto": 1652, "iconpark": 2614}
    assert {entry.source for entry in made.entries} == set(counts)
    for entry in made.entries:
        with Image.open(made.file(entry)) as image:
            image.load()
            assert image.size == (entry.width, entry.height)
