"""Programs that stand in for gdb and do not come to an end as it does."""

from __future__ import annotations

import shutil
from pathlib import Path

from autopsy.linux import environment
from support import lab

# GDB is the real one, FOLDER where the stand-in lies.
ENDS = "#!/bin/sh\necho out of memory >&2\nexit 1\n"
CRASHES = "#!/usr/bin/python3\nimport ctypes\nctypes.string_at(0)\n"
HANGS = "#!/bin/sh\necho $$ > FOLDER/pid\nexec sleep 600\n"
NO_PROGRAM = "\x7fELF no program at all"
REFUSES = r"""#!/bin/sh
while read line; do
  echo "${line%%-*}^error,msg=\"not in executable format: file format not recognized\""
done
"""
# Two threads are printed, and the beginning of a third.
CRASHES_IN_THE_MIDDLE = r"""#!/usr/bin/python3
import ctypes, subprocess, sys
inner = subprocess.Popen(["GDB", *sys.argv[1:]], stdout=subprocess.PIPE)
threads = 0
for line in inner.stdout:
    threads += line.startswith(rb'~"\nThread ')
    last = threads == 3 and line.startswith(b'~"#0')
    sys.stdout.buffer.write(line.partition(rb"\n")[0] + b'\\n"\n' if last else line)
    sys.stdout.buffer.flush()
    if last:
        ctypes.string_at(0)
"""


def lay(folder: Path, text: str) -> Path:
    """Write a program named gdb to a new folder, and return the folder."""
    gdb = shutil.which("gdb", path=environment.PATH)
    if gdb is None:
        lab.missing("gdb is not installed")
    folder.mkdir()
    (folder / "gdb").write_text(text.replace("GDB", str(gdb)).replace("FOLDER", str(folder)))
    (folder / "gdb").chmod(0o755)
    return folder
