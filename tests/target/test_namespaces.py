"""QEMU in namespaces of its own, as containers run it: captured from the host, and from inside the same container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from autopsy.bundle import layout, sections
from autopsy.bundle.pid_namespaces import Numbers, numbers
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.records import FutexWait
from autopsy.capture.freeze import step as freeze
from autopsy.capture.host import vm_files
from autopsy.capture.proc import witness
from autopsy.capture.qmp import guard
from autopsy.capture.reading.procfs import held
from autopsy.capture.reading.reader import ReadFailures, take
from autopsy.capture.step import Collected, Deadline
from autopsy.drill.machine import Machine
from autopsy.errors import NoSuchVm
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.threads.lock_owners import Waits, core_waits, lock_graph
from autopsy.facts.cite import Cite, Unknown
from autopsy.facts.locks import _from_futexes
from autopsy.linux.files import open_below, read_regular
from autopsy.target import target
from support import lab, looking

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("sole_claims")]

UUID = "0d9c8b7a-4321-4edc-9f10-dcba98765432"
POD = f"""
mount -t tmpfs tmpfs /run
mkdir -p /run/libvirt/qemu/run
echo 1 >/run/libvirt/qemu/run/shop_vm1.pid
cat >/run/libvirt/qemu/run/shop_vm1.xml <<X
<domstatus state='running' reason='booted' pid='1'><monitor path='/x' type='unix'/>
<domain type='kvm' id='7'><name>shop_vm1</name><uuid>{UUID}</uuid></domain></domstatus>
X
"""

# A thread that locks a mutex twice, as QEMU's throttle group did: it waits for itself for good.
DEADLOCK = """
#include <pthread.h>
#include <unistd.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *twice(void *unused) { pthread_mutex_lock(&lock); pthread_mutex_lock(&lock); return unused; }
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, twice, 0);
    for (;;) pause();
}
"""


@dataclass(frozen=True, slots=True)
class Contained:
    """A QEMU in a container: its process id as the host knows it."""

    machine: Machine
    pid: int

    def autopsy(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run autopsy inside the same container."""
        into = [
            "nsenter",
            f"--target={self.pid}",
            "--user",
            "--preserve-credentials",
            "--mount",
            "--pid",
            "--net",
            "--uts",
            "--ipc",
            f"--wd={ROOT}",
        ]
        return subprocess.run(
            [*into, sys.executable, "-m", "autopsy", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@contextmanager
def contained(*arguments: str, name: str, setup: str = "") -> Iterator[Contained]:
    """Run a QEMU as process 1 of its own user, PID, mount, network, UTS and IPC namespaces."""
    lab.need_root()
    stock = lab.build("7.2")
    with lab.folder() as place:
        wrapper = place / "contained"
        script = f'{setup}\nexec {stock.binary} "$@"'
        (place / "inner").write_text(script)
        wrapper.write_text(
            "#!/bin/sh\nexec unshare --user --map-root-user --fork --kill-child=KILL --pid --mount --net --uts --ipc"
            f' --mount-proc --propagation=private sh -e {place}/inner "$@"\n'
        )
        wrapper.chmod(0o755)
        build = lab.Build("7.2", wrapper, stock.firmware_arguments, "")
        with lab.qemu(build, *arguments, name=name) as machine:
            children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children")
            yield Contained(machine, int(children.read_text().split()[0]))


def answer_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]  # JSON


@pytest.mark.live
def test_a_contained_vm_is_captured_from_the_host_and_from_inside_its_container(tmp_path: Path) -> None:
    thread = ("-object", "iothread,id=io0")
    with contained(*thread, name="boxed") as box:
        fast = ("--fast", "--json", "--out", str(tmp_path))
        outside = answer_of(
            subprocess.run(
                [sys.executable, "-m", "autopsy", "capture", "boxed", *fast],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                cwd=ROOT,
            )
        )
        inside = answer_of(box.autopsy("capture", "pid:1", *fast))
    assert (outside["target"]["pid"], inside["target"]["pid"]) == (box.pid, 1)  # type: ignore[index]  # JSON
    for told in (outside, inside):
        outcomes = {each["name"]: each["outcome"] for each in told["steps"]}  # type: ignore[attr-defined]  # JSON
        assert {name for name, outcome in outcomes.items() if outcome != "Collected"} == set(), told["steps"]
        evidence = open_bundle(Path(str(told["bundle"])))
        own = numbers(evidence.read(layout.evidence(layout.WITNESS, layout.TASKS)))
        assert (1 in own.inner) == (told is outside)  # inside, its numbers are everybody's
        assert own.tid(1) == told["target"]["pid"]  # type: ignore[index]  # JSON


@pytest.mark.live
def test_a_kubevirt_domain_is_found_by_the_name_that_its_pod_gives_it() -> None:
    with contained("-uuid", UUID, name="shop_vm1", setup=POD) as box:
        for word in ("shop_vm1", "libvirt:shop_vm1", UUID, "libvirt:7", f"pid:{box.pid}"):
            found = target.find_target(word)
            os.close(found.pidfd)
            record = found.record
            assert (record.pid, record.name, record.manager) == (box.pid, "shop_vm1", "libvirt")
            assert record.domain is not None
            assert (record.domain.word, record.domain.root) == (UUID, f"/proc/{box.pid}/root")
            assert record.domain.connection == ""  # nobody in the container decides what a virsh of ours does
        listed = subprocess.run(
            [sys.executable, "-m", "autopsy", "ps", "--json"], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert "libvirt:shop_vm1" in [vm["target"] for vm in json.loads(listed.stdout)]
        with pytest.raises(NoSuchVm):
            target.find_target("libvirt:8")
        reads = vm_files.configuration("shop_vm1", "libvirt", f"/proc/{box.pid}/root")
        stored = take(reads, Deadline(10), ReadFailures())
        assert UUID.encode() in stored[f"/proc/{box.pid}/root/run/libvirt/qemu/run/shop_vm1.xml"].data


@pytest.mark.live
def test_a_mutex_that_a_contained_thread_waits_for_is_known_for_its_own(tmp_path: Path) -> None:
    """glibc writes the tid of the thread's own PID namespace into the mutex; the host knows the thread by another."""
    lab.need_root()
    if shutil.which("gcc") is None:
        lab.missing("gcc is not here: apt install gcc libc6-dev")
    (tmp_path / "deadlock.c").write_text(DEADLOCK)
    subprocess.run(["gcc", "-pthread", "-o", tmp_path / "deadlock", tmp_path / "deadlock.c"], check=True)
    unshare = ["unshare", "--fork", "--kill-child=KILL", "--pid", tmp_path / "deadlock"]
    with subprocess.Popen(unshare) as parent:
        try:
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
            lab.until("it has forked", lambda: bool(children.read_text().split()))
            pid = int(children.read_text().split()[0])
            lab.until("its thread sleeps", lambda: len(os.listdir(f"/proc/{pid}/task")) == 2)
            lab.until("it waits for the lock", lambda: lab.waits_in(pid, "futex"))
            (thread,) = {int(tid) for tid in os.listdir(f"/proc/{pid}/task")} - {pid}
            with looking.scene(pid, tmp_path, layout.WITNESS) as at:
                assert isinstance(witness.witness_threads(at), Collected)
                tasks = (at.folder / layout.TASKS).read_bytes()
                futexes = (at.folder / layout.FUTEXES).read_bytes()
                waits = msgspec.json.decode(futexes, type=tuple[FutexWait, ...])
                seen = guard.witnessed(pid, tasks, futexes)
                with held(at.target):
                    reasons = tuple(guard._behind_mutexes(seen, guard._look_again(at, seen)))
            with looking.scene(pid, tmp_path, layout.FREEZE) as at:
                assert isinstance(freeze.expose(at), Collected)
                core = Core(at.staging / layout.CORE)
        finally:
            parent.kill()
    own = numbers(tasks)
    (wait,) = (each for each in waits if each.tid == thread)
    assert wait.owner == 2  # as it stands there
    assert own.tid(2) == thread

    assert reasons == (f"deadlock (tid {thread}) waits for a mutex that it owns itself",)

    frozen = Frozen(core=tmp_path / layout.CORE, read=lambda _: b"", write=lambda _f, _d: None, scratch=tmp_path)
    found = core_waits(core, {each.tid for each in core.threads})
    graph = lock_graph(core, Symbols(core, frozen), Waits(found, frozenset()), {thread: "deadlock"}, own)
    assert graph.cycles == ((thread,),)
    (mutex,) = graph.mutexes
    assert (mutex.owner, mutex.owner_comm, mutex.waiters) == (thread, "deadlock", (thread,))
    assert graph.notes == ()

    meant = [msgspec.structs.replace(each, owner=own.tid(each.owner)) for each in waits]
    locks = _from_futexes(meant, Cite(layout.FUTEXES), Unknown("", ""))
    assert locks.cycles == ((thread,),)


def tasks_of(*threads: tuple[int, str]) -> bytes:
    return sections.render(
        sections.Section(f"task/{tid}/status", f"Name:\tx\nNSpid:\t{levels}\n".encode()) for tid, levels in threads
    )


def test_a_number_of_qemus_own_means_the_thread_that_has_it_in_its_namespace() -> None:
    own = numbers(tasks_of((5001, "5001\t7\t1"), (5002, "5002\t8\t2")))
    assert (own.tid(1), own.tid(2), own.tid(7), own.tid(0)) == (5001, 5002, 0, 0)
    assert numbers(tasks_of((5001, "5001"), (5002, "5002"))).tid(5001) == 5001
    assert numbers(b"\xff damaged").tid(3) == 3
    assert Numbers().tid(4) == 4


def test_a_containers_links_never_lead_into_our_own_tree(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_bytes(b"the container's")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "upwards").symlink_to("../../../../../../etc/passwd")
    for name in ("absolute", "upwards", "etc/passwd"):
        assert read_regular(open_below(str(root), f"/{name}"), name, 100) == b"the container's"
    (root / "magic").symlink_to("/proc/self/root/etc/passwd")
    with pytest.raises(OSError, match="No such file"):
        open_below(str(root), "/magic")
