"""The C library's allocator: large blocks that torch frees are kept, because its next step asks for them again."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of two parameters of ``mallopt`` in glibc's ``malloc.h``."""
_LARGEST = 32 << 20
"""The largest threshold for blocks that the kernel gives one by one; glibc takes no larger one."""


def keep_freed_memory() -> None:
    """Keep the memory that this process frees, in blocks of up to 32 MiB.

    Else glibc gives each block of some hundred kilobytes back to the kernel, and the next one comes page by page,
    filled with zeros. The process stays as large as it once was. Another C library is left as it is.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
