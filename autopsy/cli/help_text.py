"""Help in groups: commands by what one does with them, options by what they are about, examples at the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand

from autopsy.cli.on_demand import GroupOnDemand

# `autopsy --help` is read on a bad night: the first group is for that.
GROUPS = (
    ("When a VM is stuck", ("ps", "capture", "show")),
    ("Stored captures", ("list", "rm", "report", "analyze", "diff", "verify", "redact", "seal")),
    ("More than a capture has", ("import", "examine", "gdb")),
    ("Before it happens", ("watch", "doctor", "drill", "replay")),
    ("Many of them", ("fleet",)),
)
OTHERS = "Others"
PANELS = (
    ("The kill", ("--then-kill", "--then-start", "--dry-run", "--even-if-healthy", "--even-if-needless", "--require")),
    ("Where it goes", ("--out", "--sign", "--no-core", "--no-binary")),
    (
        "How it is taken",
        ("--fast", "--gap", "--budget", "--max-stop", "--ask-anyway", "--ask-unstable", "--live-gdb"),
    ),
)

EXAMPLES: dict[str, tuple[str, ...]] = {
    "ps": ("autopsy ps --stuck",),
    "capture": (
        "autopsy capture 102                      evidence and verdict; the VM runs on",
        "autopsy capture 102 --then-kill --dry-run   what a kill would do, and whether it helps",
        "autopsy capture web1 --then-kill --then-start",
        "autopsy capture --stuck                  every VM of this host that looks stuck",
    ),
    "show": ("autopsy show", "autopsy show web1 --open"),
    "list": ("autopsy list --json | jq '.captures[].verdict.headline'",),
    "rm": ("autopsy rm --older 30d --dry-run",),
    "report": (
        "autopsy report BUNDLE -o report.html",
        "autopsy report BUNDLE --format md        a post-mortem draft",
        "autopsy report BUNDLE --format bug       for QEMU's tracker, redacted",
    ),
    "analyze": ("autopsy analyze BUNDLE --json",),
    "diff": ("autopsy diff BEFORE AFTER",),
    "verify": ("autopsy verify BUNDLE --allowed-signers ~/.ssh/allowed_signers",),
    "redact": ("autopsy redact BUNDLE -o shareable.tar.zst",),
    "seal": ("autopsy seal /dev/shm/autopsy-web1-….work",),
    "import": ("autopsy import bt.txt", "xclip -o | autopsy import -"),
    "examine": ("autopsy examine BUNDLE --debug-file /usr/lib/debug/…/qemu-system-x86_64",),
    "gdb": ("autopsy gdb BUNDLE",),
    "watch": ("autopsy watch --once --json", "autopsy watch --no-capture"),
    "doctor": ("autopsy doctor",),
    "drill": ("autopsy drill --list", "autopsy drill nbd-silent"),
    "replay": ("autopsy replay cases/ --junit replay.xml",),
    "fleet send": ("autopsy fleet send last.tar.zst s3://bucket/evidence --redact", "autopsy fleet send --spooled"),
    "fleet diagnose": ("autopsy fleet diagnose bundles/ --into index/ --jobs 8",),
    "fleet diff": ("autopsy fleet diff 0.1.0-30add38f 0.1.0-c46ff113 --from index/",),
    "fleet prune": ("autopsy fleet prune s3://bucket/evidence --dry-run",),
    "fleet query": (
        "autopsy fleet query top --from index/",
        "autopsy fleet query since-upgrade 10.0.2 --from index/",
        "autopsy fleet query similar BUNDLE --from index/",
        'autopsy fleet query "select signature, count(*) from diagnoses group by all" --from index/',
    ),
}
EXIT_CODES = (
    (0, "done"),
    (2, "the command line cannot be meant"),
    (3, "no such VM"),
    (4, "not permitted; the message says how to get it"),
    (5, "nothing was killed: not stored, a required step missing, or the VM is healthy or needs no kill"),
    (6, "killed, but still there: a thread sleeps in the kernel"),
    (7, "verify, replay, doctor, diff --exit-code: not as it should be"),
    (8, "killed, but not started again"),
    (9, "the VM ended by itself during the capture"),
    (130, "interrupted; what was there is sealed"),
    (1, "a bug of autopsy's"),
)


class GroupedCommand(TyperCommand):
    """A command whose help shows its options under the panel that each names."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - click is typer's own, and unnamed
        """Write the parameters in groups."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels.setdefault(self._panel(parameter), []).append(record)
        for name in ("Arguments", *(name for name, _ in PANELS), "Options"):
            if records := panels.get(name):
                with formatter.section(name):
                    formatter.write_dl(records)

    def _panel(self, parameter: Any) -> str:  # noqa: ANN401 - likewise
        if parameter.param_type_name == "argument":
            return "Arguments"
        named = (name for name, options in PANELS if parameter.opts[0] in options)
        return next(named, "Options") if self.name == "capture" else "Options"

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - likewise
        """Write the examples as they stand."""
        above = ctx.parent.info_name if ctx.parent is not None and ctx.parent.parent is not None else ""
        examples = EXAMPLES.get(f"{above} {self.name}".strip(), ())
        if examples:
            _write(formatter, "Examples", examples)


class GroupedApp(GroupOnDemand):
    """A command line whose help shows its commands in groups, and ahead of the options."""

    kind = GroupedCommand

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - likewise
        """Write the commands, then the options."""
        names_of_all = self.list_commands(ctx)
        grouped = {name for _, names in GROUPS for name in names}
        others = tuple(name for name in names_of_all if name not in grouped)
        for title, names in (*GROUPS, (OTHERS, others)):
            rows = [(name, self.on_demand.summary(name)) for name in names if name in names_of_all]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        records = [
            record for parameter in self.get_params(ctx) if (record := parameter.get_help_record(ctx)) is not None
        ]
        with formatter.section("Options"):
            formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002 - likewise
        """Write how to begin, and the exit codes."""
        _write(formatter, "Examples", ("autopsy ps", *EXAMPLES["capture"][:3], "autopsy drill"))
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in EXIT_CODES])
        formatter.write("\nautopsy COMMAND --help shows what a command takes; see autopsy(1).\n")


def _write(formatter: Any, title: str, lines: Iterable[str]) -> None:  # noqa: ANN401 - likewise
    with formatter.section(title):
        for line in lines:
            formatter.write(f"  {line}\n")
