"""Prints what autopsy stands on, a CycloneDX 1.5 bill of materials (`make sbom`).

As it is installed here, or as it is laid out for a package in the folders that are named: then with the libraries that
wheels bring along and, where a file names them, the sources of Debian that an interpreter was compiled from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

OURS = "vm-autopsy"  # the distribution; the package that is imported is autopsy


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def laid_out(folders: Sequence[str]) -> dict[str, metadata.Distribution]:
    """Return every distribution that lies in the folders, needed or not: all of it is shipped."""
    return {canonical(each.name): each for each in metadata.distributions(path=[*folders])}


def needed(root: str) -> dict[str, metadata.Distribution]:
    """Return every distribution that `root` needs here, extras of its own included, by canonical name."""
    found: dict[str, metadata.Distribution] = {}
    ahead = [root]
    while ahead:
        name = canonical(ahead.pop())
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of an extra or a platform that is not this one
            continue
        for requirement in found[name].requires or ():
            wanted, _, marker = requirement.partition(";")
            if "extra" not in marker or name == canonical(root):
                ahead.append(re.split(r"[\s\[<>=!~(]", wanted.strip())[0])
    return found


def licences(found: metadata.Distribution) -> list[dict[str, dict[str, str]]]:
    told = found.metadata
    expression = told.get("License-Expression")
    if expression:
        return [{"license": {"name": expression}}]
    of_class = [
        each.rpartition(" :: ")[2] for each in told.get_all("Classifier") or () if each.startswith("License ::")
    ]
    return [
        {"license": {"name": name}} for name in of_class or [(told.get("License") or "unknown").splitlines()[0][:80]]
    ]


def component(name: str, found: metadata.Distribution, kind: str) -> dict[str, object]:
    return {
        "type": kind,
        "bom-ref": f"pkg:pypi/{name}@{found.version}",
        "name": name,
        "version": found.version,
        "purl": f"pkg:pypi/{name}@{found.version}",
        "licenses": licences(found),
    }


def carried(folders: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield the libraries that lie in wheels beside their modules: auditwheel's, of no distribution's name."""
    for library in sorted(path for folder in folders for path in Path(folder).glob("*.libs/*.so*")):
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        yield {
            "type": "file",
            "bom-ref": f"{library.parent.name}/{library.name}",
            "name": f"{library.parent.name}/{library.name}",
            "hashes": [{"alg": "SHA-256", "content": digest}],
        }


def compiled(sources: Path | None) -> Iterator[dict[str, object]]:
    """Yield the source packages that a file names, one a line with its version."""
    for line in sources.read_text().splitlines() if sources else ():
        name, _, version = line.partition(" ")
        purl = f"pkg:deb/debian/{name}@{version}?arch=source"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bill(root: str = OURS, folders: Sequence[str] = (), sources: Path | None = None) -> dict[str, object]:
    """Return the bill; the same installation gives the same one."""
    found = laid_out(folders) if folders else needed(root)
    own = found.pop(root)
    of_pypi = (component(name, found[name], "library") for name in sorted(found))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(root, own, "application")},
        "components": [*of_pypi, *carried(folders), *compiled(sources)],
    }


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("folders", nargs="*", help="where a package's contents are laid out")
    words.add_argument("--sources", type=Path, help="a file with what the interpreter was compiled from")
    asked = words.parse_args()
    json.dump(bill(folders=asked.folders, sources=asked.sources), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
