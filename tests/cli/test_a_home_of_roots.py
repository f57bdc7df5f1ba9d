"""A checkout that root alone may enter, as one in /root: what reads strangers' bytes works there, and is nobody."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import stored

HOUSE = Path(__file__).resolve().parents[2]
# It is seen below a folder of root's alone, and nowhere else.
THERE = """
set -e
mount --bind "$HOUSE" "$PLACE"
mount --types tmpfs --options mode=700 none "$HOUSE"
cd "$PLACE"
export PYTHONPATH="$PLACE"
exec "$PYTHON" -m autopsy "$@"
"""
BUNDLE = stored.right().bundle.relative_to(HOUSE)
OTHER = next(case.bundle for case in stored.CASES if case.bundle.name.endswith(".zst")).relative_to(HOUSE)
PASTE = """
(gdb) thread apply all bt
Thread 1 (Thread 0x7f00 (LWP 100) "qemu-system-x86"):
#0  0x00007f0000000000 in ppoll () from /lib/libc.so.6
#1  0x0000560000000000 in main_loop_wait (nonblocking=0) at ../util/main-loop.c:592
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, as root")


def there(place: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    home = place / "home"
    (home / "autopsy").mkdir(parents=True)
    home.chmod(0o700)
    inside = home / "autopsy"
    python = Path(sys.executable)
    if python.is_relative_to(HOUSE):
        python = inside / python.relative_to(HOUSE)
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", THERE, "sh", *words],
        env=os.environ | {"HOUSE": str(HOUSE), "PLACE": str(inside), "PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("report", BUNDLE, "-o", "-"),
        ("report", BUNDLE, "--format", "md", "-o", "-"),
        ("analyze", BUNDLE),
        ("diff", BUNDLE, OTHER),
        ("verify", BUNDLE),
        ("redact", "{out}/bundle.tar.zst", "-o", "{out}/public.tar.zst"),
        ("import", "{out}/paste.txt", "--out", "{out}"),
        ("replay", BUNDLE.parent),
    ],
    ids=lambda words: " ".join(map(str, words[:1] + words[2:4:2])),
)
def test_a_bundle_is_read_from_a_checkout_that_root_alone_may_enter(
    words: tuple[str | Path, ...], tmp_path: Path
) -> None:
    (tmp_path / "paste.txt").write_text(PASTE)
    shutil.copy(HOUSE / BUNDLE, tmp_path)  # what was hidden is written down beside it
    done = there(tmp_path, *(str(word).format(out=tmp_path) for word in words))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this is a bug" not in done.stderr
