"""A thread that writes to a character device waits for its reader, unless it waits for the storage of a file."""

from __future__ import annotations

from autopsy.bundle import records
from autopsy.bundle.sections import Section
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

VCPU = e.PID + 2
NANOSLEEP = "230 0x0 0x0 0x7f0000001000 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"
WRITE = "1 0x9 0x7f0000001000 0x1 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"


def writing(state: str, syscall: str, *stack: str, unread: int = 0) -> Diagnosis:
    """Return what is said of a vCPU that writes to a serial port's back end with the BQL held."""
    case = e.Case(version="10.0.2")
    case.idle_threads()
    vcpu = next(each for each in case.tasks if each.tid == VCPU)
    vcpu.state, vcpu.syscall, vcpu.stack, vcpu.switches, vcpu.cpu_ns = state, syscall, stack, 0, 0
    vcpu.frames = ("write", "qemu_chr_write_buffer", "qemu_chr_write", "serial_xmit", "kvm_cpu_exec")
    case.locks = records.LockGraph(
        mutexes=(), others=(), cycles=(), bql_owner=VCPU, bql_address=0x1000, bql_how_found="symbol"
    )
    case.descriptors[9] = "/mnt/vm/console"
    if unread:
        reader = records.SocketEnd(
            fd=11, inode=7, family="unix", state="ESTAB", remote="/run/c", send_queue=unread, peer_pids=(900,)
        )
        case.ends.append(reader)
        status = b"Name:\tlogger\nState:\tT (stopped)\n"
        case.peer_sections += [Section("peer/900/comm", b"logger\n"), Section("peer/900/status", status)]
    case.dead_monitor()
    return diagnose(gather_facts(case.bundle()))


def test_a_console_in_a_file_on_a_frozen_file_system_has_no_reader_to_blame() -> None:
    found = writing("D", WRITE, "percpu_rwsem_wait", "__percpu_down_read", "ext4_buffered_write_iter", "vfs_write")
    assert found.signature == "host-fs-frozen"
    assert [each.signature for each in found.causes] == ["host-fs-frozen"]
    assert "chardev-blocked" not in {each.signature for each in found.secondary}


def test_a_console_whose_reader_does_not_read_is_told_as_that() -> None:
    assert writing("S", NANOSLEEP, "hrtimer_nanosleep", "do_nanosleep").signature == "chardev-blocked"


def test_the_program_that_does_not_read_a_console_is_named_where_only_one_has_bytes_to_read() -> None:
    found = writing("S", NANOSLEEP, "hrtimer_nanosleep", "do_nanosleep", unread=200_000)
    assert "its process 900 (logger) is stopped" in found.headline
    assert "logger 900" in found.objects
