"""Prepare an interactive gdb on a frozen core, in which every parked coroutine is a thread."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from autopsy.errors import ExaminationFailed
from autopsy.examine.core import synthetic
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core, CoreError, CoreThread
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines import find
from autopsy.examine.coroutines.find import Saved
from autopsy.examine.coroutines.listing import frame_line
from autopsy.examine.gdb.mi import BACKTRACE, RAILS
from autopsy.examine.gdb.unwind import FIRST_LWP, commands, link, notes
from autopsy.linux import environment
from autopsy.linux.confine.sandbox import send_no_signal

COMMANDS = """\
define coroutine
  if $argc == 1
    set $autopsy_thread = {before} + $arg0
    thread $autopsy_thread
    backtrace
  else
    echo coroutine N: select parked coroutine N of `info coroutines`\\n
  end
end
document coroutine
Select a parked coroutine, by its number in `info coroutines`, and show its backtrace.
end
define info coroutines
  shell cat {listing}
end
document info coroutines
List the parked coroutines: number, address, where each waits.
end
define coroutines-backtrace
  thread apply {first}-{last} -q -c -- backtrace
end
document coroutines-backtrace
Show the backtrace of every parked coroutine.
end
"""
# Fifty modules are fifty times "Reading symbols from": nobody reads on from there.
QUIET = ("set logging file /dev/null", "set logging redirect on", "set logging on")
ALOUD = ("set logging off", "set logging redirect off", "set logging file gdb.txt")
WELCOME = "Parked coroutines are threads here: `info coroutines`, `coroutine N`, `coroutines-backtrace`."


def converse(frozen: Frozen) -> str:
    """Let a person use a gdb on a core, and return its exit code. Call it in the sandbox.

    Raises ExaminationFailed if there is no core to open, or no gdb.
    """
    try:
        done = subprocess.run(
            argv(frozen), check=False, env=environment.ours(TERM=environment.terminals()), preexec_fn=send_no_signal
        )
    except FileNotFoundError as error:
        raise ExaminationFailed("gdb", "is not installed", remedy="apt install gdb") from error
    return str(done.returncode)


def argv(frozen: Frozen) -> list[str]:
    """Return the command line of a gdb with the right files at the right addresses; `scratch` must outlive it.

    Raises ExaminationFailed if there is no core to open.
    """
    scratch = frozen.scratch.absolute()
    try:
        core = Core(frozen.core)
    except CoreError as error:
        raise ExaminationFailed("core", str(error), remedy="capture again; see the outcome of freeze") from error
    symbols = Symbols(core, frozen)
    parked = [saved for saved in find.find_coroutines(core, symbols) if saved.coroutine.state == "parked"]
    combined = scratch / "combined.core"
    combined.unlink(missing_ok=True)
    others = [CoreThread(FIRST_LWP + number, saved.registers) for number, saved in enumerate(parked)]
    images = [image for image in symbols.images if image.file]
    links = link(images, scratch)
    synthetic.write(combined, [*core.threads, *others], list(core.extents), notes(core, links))
    script = scratch / "commands.gdb"
    script.write_text(_script(scratch, parked, symbols, threads=len(core.threads)), encoding="utf-8")
    words = ["gdb", "-nx", "-q"]
    for setting in (*RAILS, *BACKTRACE):
        words += ["-iex", setting]
    loads = commands(images, links, scratch)
    # Each by itself: a module that gdb does not like must not cost the others.
    for command in (*QUIET, f"core-file {combined}", *loads, *ALOUD, f"source {script}", f"echo {WELCOME}\\n"):
        words += ["-ex", command]
    return words


def _script(scratch: Path, parked: list[Saved], symbols: Symbols, *, threads: int) -> str:
    listing = scratch / "coroutines.txt"
    rows = [
        f"{number:>5}  {saved.coroutine.address:#x}  {frame_line(0, symbols.frame(saved.coroutine.pc))}"
        for number, saved in enumerate(parked, start=1)
    ]
    listing.write_text("\n".join([*rows, f"{len(parked)} parked coroutines", ""]), encoding="utf-8")
    return COMMANDS.format(
        before=threads, first=threads + 1, last=threads + len(parked), listing=shlex.quote(str(listing))
    )
