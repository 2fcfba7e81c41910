import subprocess
import sys

import pytest

_CODE = """
import resource, sys
import torch
from wukong.runtime import allocator

if sys.argv[1] == "kept":
    allocator.keep_freed_memory()
torch.set_num_threads(1)
torch.ones(4 << 20).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(4 << 20).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_a_block_of_16_mib_is_not_given_anew_by_the_kernel() -> None:
    faults = {
        kind: int(subprocess.run([sys.executable, "-c", _CODE, kind], check=True, capture_output=True).stdout)
        for kind in ("kept", "given back")
    }
    assert faults["kept"] < 200 and faults["given back"] > 5_000, faults
