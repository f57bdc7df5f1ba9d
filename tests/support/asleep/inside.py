"""Runs in the host that sleeps: watches VMs, has the host sleep, and says what the watch tells; a line of JSON each."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from autopsy.drill.machine import Machine, start_machine
from autopsy.drill.process import DrillProcess, start
from autopsy.drill.site import site

MARK = "ASLEEP "
PATIENCE = 240.0  # an emulated processor within an emulated one
AFTER = 25.0  # seconds that are watched after the host has woken
SLEEPS = 25  # seconds
WRITES = 60
DISK = ("-device", "virtio-blk-pci,id=vd0,drive=disk0")
STATE = Path("/run/autopsy/watch/state.json")
ALARM = Path("/sys/class/rtc/rtc0/wakealarm")
KEYBOARD = Path("/sys/devices/platform/i8042/serio0/power/wakeup")
MAPPED = "/dev/dm-0"


def say(**what: Any) -> None:
    """Tell the outside, with both clocks."""
    line = json.dumps({"monotonic": time.monotonic(), "boottime": boottime(), **what})
    sys.stdout.write(f"{MARK}{line}\n")
    sys.stdout.flush()


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def until(what: str, ask: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = boottime() + seconds
    while not ask():
        if boottime() > end:
            raise TimeoutError(what)
        time.sleep(0.3)


def told() -> dict[str, dict[str, Any]]:
    """Return what the watch's last round says of each VM."""
    try:
        vms = json.loads(STATE.read_bytes())["round"]["vms"]
    except (OSError, ValueError):
        return {}
    return {vm["name"]: vm for vm in vms}


def sign(vm: dict[str, Any]) -> str:
    return str(vm["stalled"] or ("suspect" if vm["suspect"] else ""))


class Told:
    """Says each time that what the watch tells of a VM becomes another thing."""

    def __init__(self) -> None:
        self.last: dict[str, str] = {}

    def follow(self, seconds: float, over: Callable[[], bool] = lambda: False) -> None:
        end = boottime() + seconds
        while True:
            for name, vm in told().items():
                if self.last.get(name, "") != sign(vm):
                    self.last[name] = sign(vm)
                    say(vm=name, sign=sign(vm), oldest=vm["oldest_unmoved_seconds"], state=vm["state"])
            if boottime() > end or over():
                return
            time.sleep(0.3)

    def until_called(self, name: str) -> None:
        """Follow them until a VM is called stalled."""
        self.follow(PATIENCE, lambda: self.last.get(name, "") not in {"", "suspect"})

    def until_all_is_well(self) -> None:
        """Follow them until none is told of."""
        self.follow(PATIENCE, lambda: not any(self.last.values()))


@contextmanager
def vm(name: str, *words: str) -> Iterator[Machine]:
    """Run a QEMU whose guest halts."""
    with site() as there:
        name_words = ("-name", f"guest={name},debug-threads=on", "-m", "16")
        yield start_machine(there, *name_words, *words, accelerate=("-accel", "tcg"))


def disk(name: str, more: str = "") -> tuple[str, ...]:
    image = Path("/run", name)
    with image.open("wb") as stream:
        stream.truncate(64 << 20)
    return ("-drive", f"if=none,id=disk0,format=raw,file={image}{more}", *DISK)


def write(machine: Machine, count: int = 1) -> None:
    for number in range(count):
        machine.qemu_io("disk0", f"aio_write {number}M 4k", within=PATIENCE)


def write_on(machine: Machine, over: threading.Event) -> None:
    while not over.wait(0.3):
        with suppress(TimeoutError):
            write(machine)


def sleep(mode: str) -> None:
    """Have the host sleep; its clock's alarm or, from suspend to idle, a key wakes it."""
    ALARM.write_text("0")
    ALARM.write_text(f"+{SLEEPS}")
    with suppress(OSError):
        KEYBOARD.write_text("enabled")
    say(sleeps=mode)
    Path("/sys/power/state").write_text(mode)
    say(woke=mode)


def slept_through(stuck: Machine, mode: str, follow: Told) -> None:
    """Wedge a VM at a limit, sleep, and say what the watch tells until some time after."""
    write(stuck, 4)
    time.sleep(1)
    sleep(mode)
    follow.follow(AFTER)  # for all of them, and
    follow.until_called(mode)
    free = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    stuck.qmp("block_set_io_throttle", device="disk0", within=PATIENCE, **free)
    follow.until_all_is_well()


def mapper(*words: str) -> None:
    subprocess.run(["dmsetup", "--noudevsync", "--noudevrules", *words], check=True)


def suspended(machine: Machine, follow: Told) -> None:
    """Suspend the device-mapper's device below a VM's disk."""
    mapper("suspend", "--noflush", "--nolockfs", "below")
    try:
        say(suspended=MAPPED)
        write(machine, 4)
        follow.until_called("mapped")
        say(in_flight=Path("/sys/block/dm-0/stat").read_text().split()[8])
    finally:
        mapper("resume", "below")
    follow.until_all_is_well()


def main() -> None:
    with ExitStack() as host:
        size = int(Path("/sys/block/vda/size").read_text())
        mapper("create", "below", "--table", f"0 {size} linear /dev/vda 0")
        limit = ",throttling.bps-total=1,throttling.group="
        host.enter_context(vm("idle"))
        writing = host.enter_context(vm("writes", *disk("writes")))
        slow = host.enter_context(vm("slow", *disk("slow", ",throttling.iops-total=1")))
        stuck = {mode: host.enter_context(vm(mode, *disk(mode, limit + mode))) for mode in ("mem", "freeze")}
        image = f"if=none,id=disk0,format=raw,file={MAPPED},cache=none,aio=threads"
        mapped = host.enter_context(vm("mapped", "-drive", image, *DISK))
        names = {"idle", "writes", "slow", "mapped", *stuck}
        there = host.enter_context(site())
        watch: DrillProcess = start(there, [sys.executable, "-m", "autopsy", "watch", "--no-capture"], log="watch.log")
        host.callback(lambda: say(log=watch.log.read_text()[-4000:], told=told()))
        say(started=sorted(names))
        over = threading.Event()
        writer = threading.Thread(target=write_on, args=(writing, over), daemon=True)
        writer.start()
        until("the watch knows them", lambda: names <= told().keys() or not watch.alive())
        say(watched=sorted(told()))
        follow = Told()
        follow.follow(10)
        write(slow, WRITES)
        for mode, machine in stuck.items():
            slept_through(machine, mode, follow)
        suspended(mapped, follow)
        over.set()
        writer.join(PATIENCE)
    say(over=True)


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        say(failed=repr(error))
        raise
