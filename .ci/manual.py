"""Prints autopsy(1) from the command line itself: commands, options, defaults; then exit codes, files, environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from autopsy import __version__
from autopsy.cli.app import app
from autopsy.cli.help_text import EXAMPLES, EXIT_CODES, GROUPS, OTHERS

FILES = (
    ("/var/lib/autopsy", "the store of root: bundles, reports, notes of kills; nothing above it is ever made"),
    ("$XDG_STATE_HOME/autopsy", "the store of other users; ~/.local/state/autopsy where that is not set"),
    ("expendable/", "in the store: drills. They go first where it takes more than 10 % of its disk, or 4 GiB"),
    ("NAME.tar.zst", "a bundle, mode 0600: core and command line can hold secrets; tar --zstd opens it"),
    ("NAME.html", "its report"),
    ("NAME.tar.zst.kill.json", "who killed the VM, when, and how that went"),
    ("NAME.tar.zst.sig", "its signature, where --sign made one"),
    ("NAME.LETTERS.partial", "beside a bundle that is not sealed yet; `autopsy seal` seals what a killed capture left"),
    ("/run, /dev/shm: NAME.LETTERS.work", "evidence at work, in memory"),
    ("/etc/autopsy/watch.toml", "what `watch` does, each key with its default"),
    ("/run/autopsy/watch", "the last minute that `watch` saw of each VM, its last round; else $XDG_RUNTIME_DIR"),
    ("/var/tmp", "where a bundle goes, in a private folder, if no other place takes it"),  # noqa: S108 - what is said of it is true
)
ENVIRONMENT = (
    ("TMPDIR", "where temporary folders go; else the first of /var/tmp, /var/lib/autopsy, /tmp that is there"),
    ("STATE_DIRECTORY", "the store, where systemd sets it for a unit with StateDirectory=autopsy"),
    ("XDG_STATE_HOME", "below it lies the store of a user who is not root"),
    ("NOTIFY_SOCKET, WATCHDOG_USEC", "set by systemd: a watch tells it of its rounds"),
    ("INVOCATION_ID", "set by systemd: a watch that is a unit captures by units"),
    ("NO_COLOR", "no colours, whatever the terminal"),
    ("PATH", "where programs of the host are looked for, in those of its folders that are root's or ours"),
    ("COLUMNS, TERM", "how wide a terminal is, and whether it can be drawn on"),
    ("DISPLAY, WAYLAND_DISPLAY", "the desktop that `show --open` opens a report on"),
    ("SUDO_USER", "named in the note of a kill"),
    ("AWS_…, GOOGLE_…, AZURE_…", "how `fleet` gets at a bucket, as the object stores' own programs take it"),
    ("AWS_ALLOW_HTTP", "true where an S3 server has no TLS"),
    ("AUTOPSY_QEMU", "the QEMU that a drill wedges, instead of this host's"),
)


def roff(text: str) -> str:
    """Return text that roff takes for itself."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in {".", "'"} else line for line in escaped.splitlines())


def forms(parameter: Any) -> str:
    """Return an option as it is typed, with what it takes."""
    names = ", ".join(f"\\fB{roff(name)}\\fR" for name in parameter.opts)
    return names if parameter.is_flag else f"{names} \\fI{roff(parameter.metavar or 'VALUE')}\\fR"


def meaning(parameter: Any) -> str:
    """Return an option's help with its default, where it has one that says something."""
    text = roff(parameter.help or "")
    default = parameter.default
    if default in (None, False, "", (), []) or getattr(parameter, "is_flag", False):
        return text
    return f"{text} (default: {roff(f'{default:g}' if isinstance(default, float) else str(default))})"


def command(name: str, it: Any) -> Iterator[str]:
    """Yield a command's section."""
    arguments = [each for each in it.params if each.param_type_name == "argument"]
    options = [each for each in it.params if each.param_type_name == "option" and not each.hidden]
    words = " ".join(f"\\fI{roff(each.metavar or each.name.upper())}\\fR" for each in arguments)
    yield ".TP"
    yield f"\\fBautopsy {roff(name)}\\fR {words} [\\fIOPTION\\fR]..."
    yield roff(it.help or "")
    yield ".RS"
    for each in arguments:
        if each.help:
            yield from (".TP", f"\\fI{roff(each.metavar or each.name.upper())}\\fR", meaning(each))
    for each in options:
        if each.name != "help":
            yield from (".TP", forms(each), meaning(each))
    yield ".RE"


def examples() -> Iterator[str]:
    """Yield the examples of every command."""
    yield from (".SH EXAMPLES", ".nf")
    for lines in EXAMPLES.values():
        yield from map(roff, lines)
    yield ".fi"


def table(title: str, rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """Yield a section of terms and what they mean."""
    yield f".SH {title}"
    for term, text in rows:
        yield from (".TP", f"\\fB{roff(term)}\\fR", roff(text))


def page() -> Iterator[str]:
    """Yield the manual page."""
    top: Any = typer.main.get_command(app)
    yield f'.TH AUTOPSY 1 "" "autopsy {__version__}" "System administration"'
    yield from (".SH NAME", "autopsy \\- freezes the evidence of a wedged QEMU before anybody kills it")
    yield from (".SH SYNOPSIS", ".B autopsy", "\\fICOMMAND\\fR [\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...")
    yield from (".SH DESCRIPTION", roff(top.help), "Standard output has the result, standard error the story.")
    yield ".SH COMMANDS"
    grouped = {name for _, names in GROUPS for name in names}
    for title, names in (*GROUPS, (OTHERS, tuple(name for name in top.commands if name not in grouped))):
        if names:
            yield f".SS {roff(title)}"
        for name in names:
            below = getattr(top.commands[name], "commands", {})
            for each, it in below.items():
                yield from command(f"{name} {each}", it)
            if not below:
                yield from command(name, top.commands[name])
    yield from table("EXIT STATUS", tuple((str(code), text) for code, text in EXIT_CODES))
    yield from table("FILES", FILES)
    yield from table("ENVIRONMENT", ENVIRONMENT)
    yield from examples()
    yield from (".SH SEE ALSO", "gdb(1), virsh(1), qm(1), qemu(1); /usr/share/doc/vm\\-autopsy/README.md")


if __name__ == "__main__":
    print("\n".join(page()))
