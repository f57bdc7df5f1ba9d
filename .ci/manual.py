"""Prints autopsy(1), from what the command line says of itself and a few words on exit codes."""

from __future__ import annotations

from typing import Any

import typer

from autopsy import __version__
from autopsy.cli.app import app


def roff(text: str) -> str:
    """Return text that roff takes for itself."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in {".", "'"} else line for line in escaped.splitlines())


def forms(parameter: Any) -> str:
    """Return an option as it is typed, with what it takes."""
    names = ", ".join(f"\\fB{roff(name)}\\fR" for name in parameter.opts)
    return names if parameter.is_flag else f"{names} \\fI{roff(parameter.metavar or 'VALUE')}\\fR"


def command(name: str, it: Any) -> list[str]:
    """Return a command's section."""
    arguments = [each for each in it.params if each.param_type_name == "argument"]
    options = [each for each in it.params if each.param_type_name == "option" and each.name != "help"]
    words = " ".join(f"\\fI{roff(each.metavar or each.name.upper())}\\fR" for each in arguments)
    lines = [".TP", f"\\fBautopsy {roff(name)}\\fR {words} [\\fIOPTION\\fR]...", roff(it.help or "")]
    if arguments or options:
        lines.append(".RS")
        for each in arguments:
            if each.help:
                lines += [".TP", f"\\fI{roff(each.metavar or each.name.upper())}\\fR", roff(each.help)]
        for each in options:
            lines += [".TP", forms(each), roff(each.help or "")]
        lines.append(".RE")
    return lines


def page() -> list[str]:
    """Return the manual page."""
    top: Any = typer.main.get_command(app)
    lines = [f'.TH AUTOPSY 1 "" "autopsy {__version__}" "System administration"', ".SH NAME"]
    lines += ["autopsy \\- freezes the evidence of a wedged QEMU before anybody kills it", ".SH SYNOPSIS"]
    lines += [".B autopsy", "\\fICOMMAND\\fR [\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...", ".SH DESCRIPTION"]
    lines += [roff(top.help), "Standard output has the result, standard error the story.", ".SH COMMANDS"]
    for name, each in top.commands.items():
        lines += command(name, each)
    lines += [".SH EXIT STATUS", roff(top.epilog.removeprefix("Exit codes: "))]
    lines += [".SH EXAMPLES", ".nf", roff("autopsy ps"), roff("autopsy capture web1")]
    lines += [roff("autopsy capture 102 --then-kill --then-start"), ".fi"]
    return [*lines, ".SH SEE ALSO", "gdb(1), virsh(1), qm(1), qemu(1); /usr/share/doc/vm-autopsy/README.md"]


if __name__ == "__main__":
    print("\n".join(page()))
