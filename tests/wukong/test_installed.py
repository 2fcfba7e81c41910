"""Files of installed packages."""

import importlib.util
from pathlib import Path

import pytest

from wukong.errors import ConfigError
from wukong.installed import installed_file

_JIEBA = Path(importlib.util.find_spec("jieba").origin).parent


def test_a_file_is_found_without_importing_its_package():
    assert installed_file("jieba", "jieba/dict.txt") == _JIEBA / "dict.txt"


def test_a_missing_package_or_file_says_how_to_mend_it():
    with pytest.raises(ConfigError, match=r"no-such-package is not installed.*pip install no-such-package"):
        installed_file("no-such-package", "x.txt")
    with pytest.raises(ConfigError, match=r"jieba/no\.txt is missing.*pip install jieba==1 --force-reinstall"):
        installed_file("jieba", "jieba/no.txt", "pip install jieba==1")
