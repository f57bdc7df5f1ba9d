"""What stands beside a backtrace, or without one: command lines, a kernel log, answers of the monitor, QEMU's log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import field
from typing import Any

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import Frame
from autopsy.bundle.sections import Section, render
from autopsy.dataclass import dataclass
from autopsy.incoming.material import FoundMachine
from autopsy.incoming.texts import abrt, kernel_log, qmp_text
from autopsy.incoming.texts.command_lines import CommandLines, is_qemu
from autopsy.incoming.texts.configurations import Configurations
from autopsy.incoming.texts.hmp_text import HmpText
from autopsy.incoming.texts.json_text import JsonText
from autopsy.incoming.texts.kernel_log import KernelLog
from autopsy.incoming.texts.proc_stacks import ProcStacks
from autopsy.incoming.texts.qmp_text import QmpText
from autopsy.incoming.texts.versions import Versions
from autopsy.redact.secrets import without_secrets

MOST_LOG = 2_000  # lines of QEMU's log
MONITOR = "answers of QEMU's monitor"
OWN = ("qemu-system-", "qemu-kvm: ", "kvm: ", "qemu: ")
LOG_WORDS = ("starting up libvirt version", "shutting down, reason=", "terminating on signal", "Assertion `")


@dataclass(slots=True)
class Beside:
    """Each kind of text reads every line that is no frame."""

    commands: CommandLines = field(default_factory=CommandLines)
    versions: Versions = field(default_factory=Versions)
    kernel: KernelLog = field(default_factory=KernelLog)
    stacks_of_proc: ProcStacks = field(default_factory=ProcStacks)
    json: JsonText = field(default_factory=JsonText)
    monitor: QmpText = field(default_factory=QmpText)
    human: HmpText = field(default_factory=HmpText)
    configurations: Configurations = field(default_factory=Configurations)
    log: list[str] = field(default_factory=list)
    stacks: list[tuple[Frame, ...]] = field(default_factory=list)  # of a backtrace that is no text
    crashes: list[str] = field(default_factory=list)

    def feed(self, line: str) -> str:
        """Take one line; return what it belongs to in words, empty for nothing."""
        self.versions.feed(line)
        if (value := self.json.feed(line)) is not None and (what := self._value(value)):
            return what
        if self.json.parts:
            return ""  # a value goes on; what it is shows at its end
        return next((words for words, reader in self._readers() if reader(line)), "")

    def _readers(self) -> tuple[tuple[str, Callable[[str], bool]], ...]:
        return (
            (MONITOR, self.human.feed),
            ("a VM's configuration", self.configurations.feed),
            ("a command line of QEMU", self.commands.feed),
            ("a kernel log with hung tasks", self.kernel.feed),
            ("stacks in the kernel", self.stacks_of_proc.feed),
            ("QEMU's log", self._log),
        )

    def _log(self, line: str) -> bool:
        bare = line.lstrip(" ")
        if not ((bare.startswith(OWN) and ": " in bare[:200]) or any(word in bare for word in LOG_WORDS)):
            return False
        if len(self.log) < MOST_LOG:
            self.log.append(line[:2000])
        return True

    def _value(self, value: Any) -> str:  # noqa: ANN401 - a stranger's JSON
        self.versions.take(value)
        if self.monitor.take(value):
            return MONITOR
        if is_qemu(abrt.executable(value)) and (stacks := abrt.stacks(value)):
            self.stacks += stacks if not self.stacks else ()  # of one process
            self.crashes += abrt.crash(value)
            return "ABRT's backtrace"
        return ""

    def stop(self) -> None:
        """Take no line of the next file for the rest of what this one began."""
        self.json.stop()
        self.stacks_of_proc.stop()
        self.configurations.end()
        self.versions.end()

    def machines(self, name: str, pids: Collection[int]) -> tuple[tuple[FoundMachine, ...], tuple[str, ...]]:
        """Return the one VM that is meant, where it can be told, and what is worth a note."""
        machines = tuple(_together(self.commands.found.values(), tuple(self.configurations.machines())))
        if name:
            chosen = tuple(machine for machine in machines if name in {machine.name, *machine.also})
            return chosen[:1], () if chosen or not machines else (f"no VM {name} is among: {_names(machines)}",)
        by_pid = tuple(machine for machine in machines if machine.pid and machine.pid in pids)
        if by_pid:
            return by_pid[:1], ()
        if len({machine.name for machine in machines}) > 1:
            return (), (
                f"{len(machines)} VMs are told of, and none was taken: say which by --name: {_names(machines)}",
            )
        return machines[:1], ()

    def files(self, machine: FoundMachine | None, tids: Collection[int]) -> dict[str, bytes]:
        """Return the evidence that concerns one VM, by its path inside the bundle."""
        made = qmp_text.files((*self.monitor.exchanges, *self.human.exchanges()))
        if machine is not None and machine.arguments:
            words = b"".join(word.encode("utf-8", "replace") + b"\0" for word in machine.arguments)
            made[layout.evidence(layout.WITNESS, layout.CMDLINE)] = words
        if machine is not None and machine.config:
            ending = "xml" if machine.config.lstrip().startswith("<") else "conf"
            section = Section(f"imported.{ending}", without_secrets(machine.config).encode("utf-8", "replace"))
            made[layout.evidence(layout.HOST, layout.VM_CONFIG)] = render([section])
        logged = kernel_log.of_vm(self.kernel, tids, machine.pid if machine else 0)
        if tasks := (*logged, *self.stacks_of_proc.beside(task.tid for task in logged)):
            first, again = kernel_log.as_tasks(tasks)
            made[layout.evidence(layout.WITNESS, layout.TASKS)] = first
            if again:
                made[layout.evidence(layout.SECOND_EXPOSURE, layout.TASKS)] = again
        if logged:
            made[layout.evidence(layout.HOST, layout.DMESG)] = _text(self.kernel.lines)
        if self.log:
            made[layout.evidence(layout.HOST, layout.VM_LOG)] = without_secrets(_text(self.log).decode()).encode()
        return made


def _together(lines: Collection[FoundMachine], configured: Sequence[FoundMachine]) -> Iterator[FoundMachine]:
    """Yield each VM once: a command line with the configuration of the same VM, then what has only a configuration."""
    used: set[int] = set()
    for line in lines:
        words = {line.name, *line.also} - {""}
        place = next((at for at, one in enumerate(configured) if words & {one.name, *one.also}), -1)
        if place < 0:
            yield line
            continue
        used.add(place)
        own = configured[place]
        yield msgspec.structs.replace(
            line, pid=line.pid or own.pid, also=line.also + own.also, manager=own.manager, config=own.config
        )
    yield from (one for at, one in enumerate(configured) if at not in used)


def _names(machines: Collection[FoundMachine]) -> str:
    return ", ".join(dict.fromkeys(machine.name or "(no name)" for machine in machines))[:300]


def _text(lines: Collection[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
