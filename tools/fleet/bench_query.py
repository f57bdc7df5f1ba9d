"""Times questions over a million rows of an index: `python tools/fleet/bench_query.py [ROWS]`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

ROWS = 1_000_000
PARTS = 20
MOST_SECONDS = 2.0
# As many kinds of wedge, hosts and builds as a cloud of 5,000 hypervisors has in some years.
MADE = """
COPY (SELECT sha256(i::VARCHAR) AS bundle, md5(i::VARCHAR) AS stamp, 100000 + i % 900000 AS size,
  '0.1.0-bench' AS analyzer, '' AS source, CASE WHEN i % 997 = 0 THEN 'not a whole bundle' ELSE '' END AS error,
  TIMESTAMP '2026-01-01' + to_seconds(i * 60) AS time, 'host-' || (i * 7919) % 5000 AS host, 'libvirt' AS manager,
  'qemu-system' AS program, ['7.2.22', '9.2.0', '10.0.2', '10.1.0'][1 + i % 4] AS qemu_version,
  md5((i % 40)::VARCHAR) AS build_id, '6.12.' || i % 30 AS kernel, 'Debian GNU/Linux 13 (trixie)' AS distribution,
  ['host', 'peer', 'throttle', 'none', 'unknown'][1 + i % 5] AS "where", 'signature-' || (i * i) % 61 AS signature,
  ['proven', 'likely', 'possible'][1 + i % 3] AS confidence, []::VARCHAR[] AS secondary,
  MAP {'disk': 1 + i % 3, 'thread': i % 2} AS objects, (i % 10000) / 10.0 AS since_seconds,
  'signature-' || (i * i) % 61 || ': sink ' || i % 7 AS cluster,
  [md5((i % 3000)::VARCHAR)[:16], md5((i % 7001)::VARCHAR)[:16]] AS stacks_raw,
  [md5((i % 300)::VARCHAR)[:16], md5((i % 701)::VARCHAR)[:16]] AS stacks_named,
  ['aio=io_uring', 'bus=virtio-blk-pci', 'driver=raw'] AS drivers, 'watch' AS trigger, 'dynsym' AS symbols,
  2::INTEGER AS looks, (i % 9)::INTEGER AS undecided, 0.01 AS seconds
FROM range(getvariable('first'), getvariable('after')) made(i)) TO '{part}' (FORMAT parquet, COMPRESSION zstd)
"""
SQL = "SELECT signature, qemu_version, count(*) AS n, count(DISTINCT host) FROM diagnoses GROUP BY ALL ORDER BY n"
QUESTIONS = (("top",), ("since-upgrade", "10.0"), ("unknown",), ("similar", "{digest}"), (SQL,))


def make(place: Path, rows: int) -> str:
    folder = place / "analyzer=0.1.0-bench"
    folder.mkdir()
    each = rows // PARTS
    with duckdb.connect() as connection:
        for number in range(PARTS):
            connection.execute(f"SET VARIABLE first = {number * each}")
            connection.execute(f"SET VARIABLE after = {(number + 1) * each}")
            connection.execute(MADE.replace("{part}", str(folder / f"part-{number:032x}.parquet")))
        found = connection.execute("SELECT sha256('12345')").fetchone()
    assert found is not None
    return str(found[0])


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        digest = make(Path(place), rows)
        size = sum(part.stat().st_size for part in Path(place).rglob("*.parquet"))
        print(f"{rows} rows in {PARTS} parts, {size / rows:.0f} bytes a row")
        for words in QUESTIONS:
            asked = [word.format(digest=digest) for word in words]
            began, before = time.monotonic(), os.times()
            subprocess.run(
                [sys.executable, "-m", "autopsy", "fleet", "query", *asked, "--from", place],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            took, after = time.monotonic() - began, os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            told = "" if took < MOST_SECONDS else f"  more than {MOST_SECONDS:g} s"
            print(f"{took:6.2f} s, {cpu:5.2f} s of CPU  {asked[0][:40]}{told}")


if __name__ == "__main__":
    main()
