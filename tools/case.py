"""Stores a capture as a case of fixtures/: redacted, without its core, with what its diagnosis is to be.

`make case BUNDLE=autopsy-….tar.zst [NAME=what-it-shows]` writes fixtures/NAME/. Read `expected.json` and say in
`provenance.md` how it came about: what is written there is what every later analyzer is held to.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from autopsy.bundle.reader import open_bundle
from autopsy.commands.redact import redact
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.errors import AutopsyError, UsageError
from autopsy.facts.gather import gather_facts
from autopsy.replay import expected
from autopsy.replay.cases import EXPECTED, PROVENANCE, UNPACKED, write_expected

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,60}")


def store(bundle: Path, name: str, cases: Path) -> Path:
    """Write a case and return its folder.

    Raises:
        UsageError: there is no such bundle, no such name can be, or the case is there already.
        DamagedBundle: it is no bundle.
    """
    original = diagnose(gather_facts(open_bundle(bundle)))
    name = name or f"{original.signature}-{_version(bundle)}"
    if not NAME.fullmatch(name):
        raise UsageError(name, "is no name of a case", remedy="give NAME=small-letters-and-digits")
    home = cases / name
    if home.exists():
        raise UsageError(str(home), "is there already", remedy="give another name: NAME=…")
    with tempfile.TemporaryDirectory(prefix="case-") as scratch:
        copy = Path(scratch) / "copy.tar.zst"
        done = redact(bundle, copy)
        done.map.unlink()
        if not done.same:
            sys.stderr.write("its redacted copy is diagnosed otherwise: see what the verdict rests on\n")
        home.mkdir(parents=True)
        shutil.copyfile(copy, home / f"{UNPACKED}.tar.zst")
    _tell(home, name)
    return home


def _version(bundle: Path) -> str:
    told = open_bundle(bundle).manifest.target.qemu_version
    return told.partition(" ")[0] or "unknown"


def _tell(home: Path, name: str) -> None:
    stored = open_bundle(home / f"{UNPACKED}.tar.zst")
    found: Diagnosis = diagnose(gather_facts(stored))
    write_expected(home, expected.of(found))
    manifest = stored.manifest
    (home / PROVENANCE).write_text(
        f"# {name}\n\nTO FILL IN: how it came about, and how it is known that this is the truth.\n\n"
        f"- QEMU: {manifest.target.qemu_version}, build-id {manifest.target.build_id or 'none'}\n"
        f"- Host: {manifest.host.distribution}, Linux {manifest.host.kernel}\n"
        f"- Captured: {manifest.began.utc[:10]}\n"
        f"- Expected: `{found.where}`, signature `{found.signature}`\n",
        encoding="utf-8",
    )


def main() -> int:
    """Store one case; 2 when it cannot be meant, 1 when it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--name", default="", help="of the case; default: its signature and QEMU's version")
    parser.add_argument("--into", type=Path, default=FIXTURES, help="default: %(default)s")
    chosen = parser.parse_args()
    try:
        home = store(chosen.bundle, chosen.name, chosen.into)
    except AutopsyError as error:
        sys.stderr.write(f"{error}\n{error.remedy}\n")
        return int(error.exit_code)
    sys.stdout.write(f"{home}: read {EXPECTED}, fill in {PROVENANCE}, then `autopsy replay {home}`\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
