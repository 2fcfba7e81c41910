"""The distributed jobs, one a file."""

import os

# Read when Arrow is first imported. Its own default keeps much of what was freed, so that the memory of a process would
# grow with the number of parts that it has read and written.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
