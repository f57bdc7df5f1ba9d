"""Makes the stored cases of fixtures/ anew: really wedged QEMUs, captured, made small, redacted, sealed again.

`python tools/fixtures_make.py [NAME...]` makes the named cases (default: all) in fixtures/; it needs root and the QEMUs
of tests/support/lab.py. Where the diagnosis is not what the case is known to be, the truth is written, and that is
told.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fixtures_shapes
from fixtures_shape import Shape

from autopsy.bundle import layout
from autopsy.bundle.archive import members
from autopsy.bundle.manifest import Manifest, encode_manifest
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.seal import seal
from autopsy.bundle.sections import Section, parse, render
from autopsy.diagnose.verdict import diagnose
from autopsy.errors import ExitCode
from autopsy.facts.gather import gather_facts
from autopsy.replay import expected
from autopsy.replay.cases import EXPECTED, PROVENANCE, UNPACKED, write_expected
from support import builds, lab

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"

# What no verdict rests on, and what would be made again from the rest.
LEFT_OUT = frozenset(
    {
        layout.CORE,
        layout.BINARY,
        layout.REPORT,
        layout.DIAGNOSIS,
        layout.README,
        layout.evidence(layout.SECOND_EXPOSURE, layout.CORE),
        layout.evidence(layout.WITNESS, layout.SMAPS),
        layout.evidence(layout.SECOND_EXPOSURE, layout.SMAPS),
        layout.evidence(layout.WITNESS, layout.AUXV),
    }
)
# What tells of the machine alone.
SECTIONS_LEFT_OUT = frozenset({"/proc/cmdline", "/proc/version"})
NOTE = "made a test case: cores, smaps and what tells of the machine alone were left out"
NO_BOOT = "00000000-0000-0000-0000-000000000000"
DMESG_LINE = re.compile(rb"<\d+>\[ *(\d+)\.\d+\].*\n?")
# Ours, then whatever else lived on the machine: other programs' sockets, mounts and control groups.
ELSEWHERE = (
    (re.compile(rb"/var/tmp/(?:[A-Za-z0-9_.-]+/)*?autopsy-[a-z0-9_]{8}"), b"/var/lib/vm"),
    (re.compile(rb"^\d+ \d+ \d+:\d+ \S+ /(?:mnt|tmp|var/tmp|root|home|work)/.*\n", re.MULTILINE), b""),
    (re.compile(rb"(?<=[\s>])/[\w./-]+(?=/sys/fs/cgroup/)"), b""),  # another root's mount of them
    (re.compile(rb"/tmp/[^\s\0\"]*/(?=qemu-\d+\.\d+\.\d+/)"), b"/usr/src/"),
    (re.compile(rb"/process_api(?:/[0-9a-f]{32})?"), b"/machine"),
    (re.compile(rb"(?<![\w.])(/tmp|/var/tmp|/mnt)/[^\s\0\"'\\,;:<>()]+"), rb"\1/other"),
)
ATTEMPTS = 3  # a VM that got no CPU because the machine was busy with other things is captured again
DMESG_SECONDS = 30  # ahead of the capture: the kernel's words about this wedge, not about the week before


def fixture(bundle: Path, home: Path, *, unpacked: bool) -> None:
    """Store a capture's bundle as a case: without its cores, redacted, and sealed as any other bundle."""
    manifest = open_bundle(bundle).manifest
    with tempfile.TemporaryDirectory(prefix="fixture-") as scratch:
        folder = Path(scratch) / UNPACKED
        for member in members(bundle):
            if member.name not in LEFT_OUT | {layout.MANIFEST}:
                place = folder / member.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(_redacted(member.name, b"".join(member.parts()), manifest))
        told = msgspec.json.decode(_plain(encode_manifest(manifest), manifest), type=Manifest)
        told = msgspec.structs.replace(
            told,
            options=(),
            host=msgspec.structs.replace(told.host, name="host", boot_id=NO_BOOT),
            notes=(*(note for note in told.notes if note != NOTE), NOTE),
            files=(),
        )
        sealed = Path(scratch) / f"{UNPACKED}.tar.zst"
        seal(folder, sealed, told)
        home.mkdir(parents=True, exist_ok=True)
        for old in (home / UNPACKED, home / sealed.name):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        if unpacked:
            for member in members(sealed):
                place = home / UNPACKED / member.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(b"".join(member.parts()))
        else:
            shutil.copyfile(sealed, home / sealed.name)


def _redacted(name: str, data: bytes, manifest: Manifest) -> bytes:
    """Return a file of evidence without what tells of the machine that it was captured on."""
    if name.endswith(f"/{layout.DMESG}"):
        since = manifest.began.monotonic_ns // 1_000_000_000 - DMESG_SECONDS
        data = b"".join(found[0] for found in DMESG_LINE.finditer(data) if int(found[1]) >= since)
    if name.endswith(f"/{layout.JOURNAL}"):
        data = render(Section(each.name, b"-- No entries --\n") for each in parse(data))
    if data.startswith(b"==> ") and render(parse(data)) == data:
        kept = (each for each in parse(data) if each.name not in SECTIONS_LEFT_OUT)
        return render(
            Section(_plain(each.name.encode(), manifest).decode(), _plain(each.data, manifest), each.error)
            for each in kept
        )
    return _plain(data, manifest)


def _plain(data: bytes, manifest: Manifest) -> bytes:
    """Replace paths and names of this machine by such as any machine might have."""
    for path, instead in _places():
        data = data.replace(path.encode(), instead.encode())
    for pattern, name in ELSEWHERE:
        data = pattern.sub(name, data)
    if manifest.host.boot_id:
        data = data.replace(manifest.host.boot_id.encode(), NO_BOOT.encode())
    release = manifest.host.kernel
    return data.replace(release.encode(), re.sub(r"(\d)-.*", r"\1", release).encode())


def _places() -> list[tuple[str, str]]:
    """Return this machine's folders and what to call them, the longest first."""
    found = {
        str(Path(sys.prefix)): "/usr",
        str(FIXTURES.parent): "/srv/autopsy",
        str(builds.LAB): "/srv/lab",
        str(Path.home()): "/home/operator",
    }
    for each in lab.qemu_builds():
        if not each.binary.is_relative_to("/usr"):
            up = 2 if each.binary.parent.name == "bin" else 0
            for binary in (each.binary, each.binary.resolve()):
                found[str(binary.parents[up])] = f"/opt/qemu-{each.label}"
    return sorted(found.items(), key=lambda pair: -len(pair[0]))


def capture(pid: int, out: Path, gap: float) -> Path:
    """Capture as an operator would, and return the bundle."""
    command = [sys.executable, "-m", "autopsy", "capture", f"pid:{pid}", "--gap", str(gap), "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    if done.returncode not in {ExitCode.DONE, ExitCode.VM_ENDED}:
        raise RuntimeError(done.stderr.decode())
    return Path(json.loads(done.stdout)["bundle"])


def make(shape: Shape, fixtures: Path) -> str:
    """Wedge, capture and store one case; return what its diagnosis says otherwise than it should, or nothing."""
    home = fixtures / shape.name
    build = lab.build(shape.build)
    for _ in range(ATTEMPTS - 1):
        wrong = _make_once(shape, build, home)
        if not wrong and "cpu-starved" not in (home / EXPECTED).read_text():
            return wrong
    return _make_once(shape, build, home)


def _make_once(shape: Shape, build: lab.Build, home: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="fixture-") as scratch:
        with shape.set_up(build) as machine:
            bundle = capture(machine.pid, Path(scratch), shape.gap)
        fixture(bundle, home, unpacked=shape.unpacked)
    return tell(shape, home)


def make_again(shape: Shape, fixtures: Path) -> str:
    """Make a case smaller, or tell less of the machine, without a new capture: what the rules are now."""
    home = fixtures / shape.name
    with tempfile.TemporaryDirectory(prefix="fixture-") as scratch:
        old = home / (UNPACKED if shape.unpacked else f"{UNPACKED}.tar.zst")
        bundle = Path(scratch) / f"{UNPACKED}.tar.zst"
        if old.is_dir():
            seal(old, bundle, msgspec.structs.replace(open_bundle(old).manifest, files=()))
        else:
            shutil.copyfile(old, bundle)
        fixture(bundle, home, unpacked=shape.unpacked)
    return tell(shape, home)


def tell(shape: Shape, home: Path) -> str:
    """Write expected.json and provenance.md of a case that is stored."""
    bundle = open_bundle(home / (UNPACKED if shape.unpacked else f"{UNPACKED}.tar.zst"))
    found = diagnose(gather_facts(bundle))
    told = expected.of(found)
    wrong = ""
    if (told.where, told.signature) != (shape.where, shape.signature):
        wrong = f"got {told.where}/{told.signature}, should be {shape.where}/{shape.signature}"
        told = expected.Expected(where=shape.where, signature=shape.signature, confidence="proven")
    ruled_out = {each.signature for each in found.ruled_out}
    write_expected(home, msgspec.structs.replace(told, ruled_out=tuple(s for s in shape.not_these if s in ruled_out)))
    if missing := [s for s in shape.not_these if s not in ruled_out]:
        wrong = f"{wrong}; not ruled out: {', '.join(missing)}".lstrip("; ")
    target = bundle.manifest.target
    (home / PROVENANCE).write_text(
        f"# {shape.name}\n\n{shape.how}\n\n"
        f"- QEMU: {target.qemu_version}, {BUILDS[shape.build]}, "
        f"build-id {target.build_id or 'none'}\n"
        f"- Host: {bundle.manifest.host.distribution}, Linux {bundle.manifest.host.kernel}\n"
        f"- Captured: {bundle.manifest.began.utc[:10]}, {shape.gap:g} s between the snapshots\n"
        f"- Expected: `{shape.where}`, signature `{shape.signature}`{f'; {shape.why}' if shape.why else ''}\n"
        f"- Left out: core, smaps, and what tells of the host alone (`tools/fixtures_make.py`, `fixture`)\n",
        encoding="utf-8",
    )
    return wrong


BUILDS = {
    "7.2": "Debian 12's own, stripped",
    "10.0.2": "Debian 12 backports, stripped",
    "10.0.2-debug": "built with DWARF",
    "11": "Debian sid's, stripped",
}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Make the cases that are named, or all; return 1 when one could not be made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of cases, or starts of names; default: all")
    parser.add_argument("--into", type=Path, default=FIXTURES, help="default: %(default)s")
    parser.add_argument("--again", action="store_true", help="no new captures: store the old ones by today's rules")
    parser.add_argument("--list", action="store_true", help="list the cases")
    chosen = parser.parse_args()
    if os.geteuid():
        parser.error("needs root")
    # QEMU 11's root of its own keeps the mounts of this folder alone.
    os.environ.setdefault("TMPDIR", "/var/tmp/at-fixtures")  # noqa: S108 - root's own; what lies in it has new names
    Path(os.environ["TMPDIR"]).mkdir(mode=0o700, exist_ok=True)
    os.nice(-10)  # a machine that is busy with other things must not show in the cases
    failed = 0
    for shape in fixtures_shapes.SHAPES:
        if chosen.names and not shape.name.startswith(tuple(chosen.names)):
            continue
        if chosen.list:
            say(f"{shape.name:<34} {shape.where}/{shape.signature}")
            continue
        try:
            wrong = (make_again if chosen.again else make)(shape, chosen.into)
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - one case that cannot be made must not cost the others
            failed = 1
            say(f"{shape.name}: not made\n{traceback.format_exc()}")
        else:
            say(f"{shape.name}: {wrong or 'as it should be'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
