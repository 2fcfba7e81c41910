"""What a small file of a stranger may take of this machine: each reads it in a process of its own, with a limit."""

import gzip
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from wukong.curate.sensitive_words.disguised import Disguises
from wukong.errors import DataError
from wukong.evaluate.formats import matlab

LIMIT = 400 << 20
"""Bytes that a reader may take beside its modules; each of these files took more than twice as many."""

PROGRAM = """
import resource
from pathlib import Path
{imports}
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {limit}, resource.getrlimit(resource.RLIMIT_AS)[1]))
{code}
"""


def limited(imports: str, code: str) -> str:
    """Run a program in a process that gets no more memory than ``LIMIT`` after its imports; return what it prints."""
    program = PROGRAM.format(imports=imports, code=textwrap.dedent(code), limit=LIMIT)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_packed_array_takes_no_more_than_a_set_has(tmp_path: Path) -> None:
    path = tmp_path / "images-idx3-ubyte.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"\0\0\x08\x03" + np.array([1 << 10, 1 << 10, 1 << 10], ">u4").tobytes())
        for _ in range(1 << 10):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 8 << 20
    code = f"""
        try:
            idx.read(Path({str(path)!r}), 3)
        except DataError as error:
            print(error)
    """
    said = limited("from wukong.errors import DataError\nfrom wukong.evaluate.formats import idx", code)
    assert "is no complete IDX file: it says that 1,073,741,824 bytes follow. Download it again" in said


def test_a_number_of_tars_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "nshards.txt").write_text("9999999999\n")
    (tmp_path / "test" / "0.tar").touch()
    code = f"""
        try:
            webdataset.read(Path({str(tmp_path)!r}), "test", 2)
        except DataError as error:
            print(error)
    """
    said = limited("from wukong.errors import DataError\nfrom wukong.evaluate.formats import webdataset", code)
    assert said == f"9999999998 of 9999999999 tars are not in {tmp_path}/test, the first is 1.tar"


def test_a_packed_list_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "list.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"url,caption\n")
        for _ in range(400):
            stream.write(b"x" * (1 << 20))
        stream.write(b"\nhttp://a.test/1.jpg,last\n")
    assert path.stat().st_size < 4 << 20
    imports = "from wukong.config.crawl import Crawl\nfrom wukong.crawl import own_files"
    code = f"""
        *_, last = own_files.pictures_of(Crawl(engine="files", endpoint={path.as_uri()!r}))
        print(last.url, last.caption)
    """
    assert limited(imports, code) == "http://a.test/1.jpg last"


@pytest.mark.parametrize("flat", [False, True])
def test_a_long_side_takes_no_memory_by_its_square(flat: bool) -> None:
    imports = "import numpy as np\nfrom PIL import Image\nfrom wukong.curate import pdq"
    code = f"""
        picture = Image.linear_gradient("L").convert("RGB").resize((16_000, 800))
        (hashed,), (quality,) = pdq.dihedral([Image.new("RGB", picture.size) if {flat} else picture])
        print(hashed.shape, quality > 0)
    """
    assert limited(imports, code) == f"(8, 32) {not flat}"


def test_a_variable_of_matlab_takes_no_more_than_its_process_may(tmp_path: Path) -> None:
    path = tmp_path / "list.mat"
    savemat(path, {"labels": np.zeros((1000, 1000), np.uint8)})
    size = np.array([1000, 1000], "<i4").tobytes()
    path.write_bytes(path.read_bytes().replace(size, np.array([1 << 20, 1 << 20], "<i4").tobytes(), 1))
    with pytest.raises(DataError, match=r"list\.mat is no complete MATLAB file"):
        matlab.variable(path, "labels")


def test_a_word_whose_characters_are_read_in_two_ways_takes_no_time() -> None:
    """Each of these characters has two spellings: all the ways to write the word would be two to the power of 40."""
    started = time.process_time()
    found = Disguises(["女" * 40, "女" * 20_000], ["pinyin"])
    for written in ("nu" * 40, "nv" * 40, "nu" * 39 + "nv"):
        assert found.find(written) == ["女" * 40]
    assert time.process_time() - started < 5
