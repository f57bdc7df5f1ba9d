"""Asks a service of advisories whether anything that autopsy stands on, as installed here, is known to be vulnerable.

Exit codes: 0 nothing is known, 1 something is, 2 the service could not be asked, so that nothing is known at all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import sbom

SERVICE = "https://api.osv.dev/v1/query"
SECONDS = 120


@dataclass(frozen=True, slots=True)
class NotAsked:
    """The service could not be asked, and why."""

    why: str


def advisories(versions: dict[str, str], service: str = SERVICE) -> list[str] | NotAsked:
    """Return what is known of these versions, by name, of packages; nothing of ours is sent but that."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "wanted.txt")
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in sorted(versions.items())))
        words = ["--vulnerability-service=osv", f"--osv-url={service}", "--format=json", "--progress-spinner=off"]
        asked = subprocess.run(
            [sys.executable, "-m", "pip_audit", *words, "--no-deps", "--disable-pip", "--timeout=10", "-r", wanted],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    try:
        told = json.loads(asked.stdout)["dependencies"]
    except ValueError:
        return NotAsked(asked.stderr.strip().rpartition("\n")[2] or f"pip-audit ended with {asked.returncode}")
    found = [f"{each['name']}: {each['skip_reason']}" for each in told if "skip_reason" in each]
    for each in told:
        for known in each.get("vulns", ()):
            fixed = ", ".join(known["fix_versions"]) or "nowhere yet"
            found.append(f"{each['name']} {each['version']}: {known['id']}, fixed in {fixed}")
    return found


def installed() -> dict[str, str]:
    """Return the versions of all that autopsy needs to run, without autopsy itself."""
    return {name: each.version for name, each in sbom.needed(sbom.OURS).items() if name != sbom.OURS}


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--service", default=SERVICE, help="a server that speaks OSV's query (default: %(default)s)")
    versions = installed()
    match advisories(versions, words.parse_args().service):
        case NotAsked(why=why):
            print(f"NOT AUDITED: {why}", file=sys.stderr)
            return 2
        case []:
            print(f"nothing is known against {len(versions)} packages")
            return 0
        case found:
            print("\n".join(found))
            return 1


if __name__ == "__main__":
    sys.exit(main())
