"""Who listens at a UNIX socket's path is told by ss, and no line of it that is not like that says anything."""

from __future__ import annotations

from autopsy.facts.gather import gather_facts
from support.built import cases

HEAD = "Netid State  Recv-Q Send-Q Local Address:Port  Peer Address:Port Process\n"
ROW = 'u_str LISTEN 3      0       /run/l 12989580            * 0        users:(("server",pid=77,fd=3)) <-> ino:5\n'


def listeners(ss: str) -> list[tuple[str, int, int, str]]:
    case = cases.healthy_idle()
    case.ss = ss
    found = gather_facts(case.bundle()).listeners
    return [(each.path, each.waiting, each.pid, each.comm) for each in found]


def test_a_listener_is_told_with_its_program_and_who_waits() -> None:
    assert listeners(HEAD + ROW) == [("/run/l", 3, 77, "server")]


def test_other_sockets_broken_rows_and_programs_that_nobody_may_see_are_left_out() -> None:
    rows = (
        'u_str ESTAB 0 0 /run/l 1 * 2 users:(("server",pid=77,fd=4))\n',
        "u_str LISTEN 0 1 /run/l 1 * 0\n",
        'u_str LISTEN 0 1 @abstract 1 * 0 users:(("server",pid=77,fd=4))\n',
        'tcp LISTEN 0 1 127.0.0.1:80 0.0.0.0:* users:(("server",pid=77,fd=4))\n',
        'u_str LISTEN x 1 /run/l 1 * 0 users:(("server",pid=77,fd=4))\n',
        'u_str LISTEN 0 1 /run/l 1 * 0 users:(("server",pid=99999999999999,fd=4))\n',
    )
    assert listeners(HEAD + "".join(rows)) == []


def test_a_megabyte_of_one_row_is_read_in_a_moment() -> None:
    assert listeners(HEAD + "u_str LISTEN 0 1 /" + "x" * (1 << 20) + "\n" + ROW) == [("/run/l", 3, 77, "server")]
