"""Prints what autopsy stands on, a CycloneDX 1.5 bill of materials (`make sbom`).

As it is installed here, or as it is laid out for a package in the folders that are named.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from importlib import metadata

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


def bill(root: str = OURS, folders: Sequence[str] = ()) -> dict[str, object]:
    """Return the bill; the same installation gives the same one."""
    found = laid_out(folders) if folders else needed(root)
    own = found.pop(root)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(root, own, "application")},
        "components": [component(name, found[name], "library") for name in sorted(found)],
    }


if __name__ == "__main__":
    json.dump(bill(folders=sys.argv[1:]), sys.stdout, indent=2)
    sys.stdout.write("\n")
