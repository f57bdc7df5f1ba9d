"""Fuzzes what reads a stranger's bytes, guided by coverage (atheris); run it with `make fuzz`.

Each reader may refuse in our own words, and nothing else: any other exception, a hang or a want of memory is a finding.
Inputs that reached new code are kept in tests/corpus/, the smallest first and no more than a few kilobytes each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
CORPUS = HOUSE / "tests" / "corpus"
MOST_KEPT = 40
MOST_BYTES = 2048
MEMORY_MB = 1024
ONE_SECONDS = 10

# Instrumented below, in the process that fuzzes: nothing of ours may be imported before.
Reader = Callable[[bytes], object]


def archive() -> Reader:
    from autopsy.bundle.reader import open_bundle  # noqa: PLC0415 - see Reader
    from autopsy.errors import AutopsyError  # noqa: PLC0415 - likewise

    place = Path(tempfile.mkdtemp()) / "a.tar.zst"

    def read(data: bytes) -> None:
        import zstandard  # noqa: PLC0415 - likewise

        for content in (data, zstandard.compress(data)):
            place.write_bytes(content)
            try:
                open_bundle(place)
            except AutopsyError:
                continue

    return read


def manifest() -> Reader:
    from autopsy.bundle.reader import decode_manifest  # noqa: PLC0415 - see Reader
    from autopsy.errors import AutopsyError  # noqa: PLC0415 - likewise

    def read(data: bytes) -> None:
        try:
            decode_manifest(Path("x"), data)
        except AutopsyError:
            return

    return read


def sections() -> Reader:
    from autopsy.bundle.sections import parse  # noqa: PLC0415 - see Reader

    return lambda data: list(parse(data))


def core() -> Reader:
    from autopsy.examine.core.reader import Core, CoreError  # noqa: PLC0415 - see Reader

    place = Path(tempfile.mkdtemp()) / "core"

    def read(data: bytes) -> None:
        place.write_bytes(data)
        try:
            Core(place)
        except CoreError:
            return

    return read


def unwinding() -> Reader:
    from autopsy.examine.core.cfi import NoRule, UnwindTables  # noqa: PLC0415 - see Reader
    from autopsy.examine.core.dwarf_expression import work_out  # noqa: PLC0415 - likewise
    from autopsy.examine.core.elf import Elf, ElfError  # noqa: PLC0415 - likewise

    registers = dict.fromkeys(range(17), 5)

    def read(data: bytes) -> None:
        try:
            elf = Elf(data)
            tables, starts = UnwindTables(elf), elf.unwind_starts[:8]
        except ElfError:
            return
        for address in (place + beyond for place in starts for beyond in (0, 9)):
            with suppress(NoRule):
                row = tables.row(address)
                for program in (row.expression, *(rule.expression for rule in row.rules.values())):
                    if program:
                        work_out(program, registers, lambda _address: 3, 9)

    return read


def redaction() -> Reader:
    from autopsy.redact.files import redacted  # noqa: PLC0415 - likewise
    from autopsy.redact.pseudonyms import Pseudonyms  # noqa: PLC0415 - see Reader

    files = ("maps", "qmp.jsonl", "heap.json", "dmesg.txt", "vm-config.txt", "tasks.txt", "cmdline")

    def read(data: bytes) -> None:
        hide = Pseudonyms()
        name = files[data[0] % len(files)] if data else files[0]
        redacted(f"evidence/host/{name}", data[1:], hide, bool)
        hide.learned()
        redacted(f"evidence/host/{name}", data[1:], hide, bool)

    return read


def diagnosis() -> Reader:
    """Put arbitrary bytes in the place of one file of a real capture, and diagnose it."""
    from autopsy.bundle.reader import open_bundle  # noqa: PLC0415 - see Reader
    from autopsy.diagnose.verdict import diagnose  # noqa: PLC0415 - likewise
    from autopsy.facts.gather import gather_facts  # noqa: PLC0415 - likewise

    whole = open_bundle(HOUSE / "fixtures" / "throttle-timer-7.2" / "bundle")
    files = sorted(name for name in whole.names() if name.startswith("evidence/"))

    class Spoiled:
        manifest = whole.manifest

        def __init__(self, name: str, data: bytes) -> None:
            self.name, self.data = name, data

        def read(self, name: str) -> bytes:
            return self.data if name == self.name else whole.read(name)

        def names(self) -> tuple[str, ...]:
            return whole.names()

    def read(data: bytes) -> None:
        name = files[data[0] % len(files)] if data else files[0]
        real = whole.read(name)
        cut = int.from_bytes(data[1:4], "little") % (len(real) + 1)
        diagnose(gather_facts(Spoiled(name, real[:cut] + data[4:] + real[cut + len(data) :])))

    return read


def incoming() -> Reader:
    """Import arbitrary bytes: whatever is in them, they are told for what they seem, and no exception gets out."""
    from autopsy.incoming.reading import ImportReading  # noqa: PLC0415 - see Reader
    from autopsy.incoming.stored import stored  # noqa: PLC0415 - likewise

    scratch = Path(tempfile.mkdtemp())
    given = scratch / "given"

    def read(data: bytes) -> None:
        given.write_bytes(data)
        with given.open("rb") as file, (scratch / "core").open("w+b") as core:
            reading = ImportReading(core.fileno())
            try:
                seen = reading.take(file.fileno())
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError, tarfile.TarError):
                return  # it is no whole archive: that is told, one floor above
        stored(reading.end((seen,)).paste)

    import lzma  # noqa: PLC0415 - see Reader
    import tarfile  # noqa: PLC0415 - likewise
    import zlib  # noqa: PLC0415 - likewise

    import zstandard  # noqa: PLC0415 - likewise

    return read


READERS = {
    each.__name__: each for each in (archive, manifest, sections, core, unwinding, redaction, diagnosis, incoming)
}


def fuzz_one(name: str, corpus: Path, seconds: int) -> None:
    """Fuzz one reader in this process; ends it."""
    import atheris  # noqa: PLC0415 - only `make fuzz` has it

    with atheris.instrument_imports(include=["autopsy"]):
        read = READERS[name]()
    options = [
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={ONE_SECONDS}",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], str(corpus), *options, f"-artifact_prefix={corpus.parent}/crash-{name}-"], read)
    atheris.Fuzz()


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--seconds", type=int, default=600, help="for all readers together")
    words.add_argument("--one", nargs=2, metavar=("READER", "CORPUS"), help=argparse.SUPPRESS)
    words.add_argument("readers", nargs="*", default=list(READERS))
    asked = words.parse_args()
    if asked.one:
        fuzz_one(asked.one[0], Path(asked.one[1]), asked.seconds)
        return 0
    failed = 0
    share = max(1, asked.seconds // len(asked.readers))
    for name in asked.readers:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            corpus = Path(scratch) / name
            corpus.mkdir()
            kept = CORPUS / name
            kept.mkdir(parents=True, exist_ok=True)
            for each in kept.iterdir():
                (corpus / each.name).write_bytes(each.read_bytes())
            done = subprocess.run(
                [sys.executable, __file__, "--one", name, str(corpus), "--seconds", str(share)],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                env={**os.environ, "PYTHONPATH": str(HOUSE), "TMPDIR": scratch},
            )
            runs = next(
                (line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line), "?"
            )
            print(f"{name}: {runs} inputs, {'nothing found' if not done.returncode else 'A FINDING'}", flush=True)
            if done.returncode:
                failed += 1
                print(done.stderr[-3000:])
                for crash in Path(scratch).glob("crash-*"):
                    (kept / crash.name).write_bytes(crash.read_bytes())
            found = sorted(corpus.iterdir(), key=lambda each: (each.stat().st_size, each.name))
            for each in [each for each in found if each.stat().st_size <= MOST_BYTES][:MOST_KEPT]:
                (kept / each.name).write_bytes(each.read_bytes())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
