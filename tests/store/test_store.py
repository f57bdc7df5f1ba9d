"""The store is private, made without a folder of the system's, and throws away nothing that a person asked for."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autopsy.errors import UsageError
from autopsy.files.private import NotPrivate
from autopsy.store import place, removal
from autopsy.store.choose import chosen
from autopsy.store.entries import StoredBundle, entries
from support import lab, strangers
from support.built import pastes
from support.built.pastes import DISPATCH, POLL, STARTED
from support.strangers import STRANGER

PASTE = pastes.dump(
    ("worker", ("fdatasync", "handle_aiocb_flush", "worker_thread", *STARTED)),
    ("qemu-system-x86", (*POLL, "bdrv_drain_all_begin", "do_vm_stop", *DISPATCH)),
)
OLD, NEW = "20200102T030405", "20260102T030405"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a store of our own, which is not there yet."""
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state/autopsy"))
    return tmp_path / "state/autopsy"


def put(store: Path, name: str, size: int = 10, *, expendable: bool = False) -> Path:
    folder = place.expendable_path() if expendable else store
    place.provide(folder)
    bundle = folder / f"{name}.tar.zst"
    bundle.write_bytes(b"x" * size)
    return bundle


def names(found: tuple[StoredBundle, ...]) -> list[str]:
    return [entry.name for entry in found]


def test_root_and_a_user_have_a_store_each_and_systemd_may_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert place.store_path() == Path("/var/lib/autopsy")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ann")
    assert place.store_path() == Path("/home/ann/.local/state/autopsy")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/ann/state")
    assert place.store_path() == Path("/home/ann/state/autopsy")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the specification has it ignored
    assert place.store_path() == Path("/home/ann/.local/state/autopsy")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/agent")
    assert place.store_path() == Path("/home/ann/.local/state/autopsy")
    monkeypatch.setenv("STATE_DIRECTORY", "/srv/autopsy")
    assert place.store_path() == Path("/srv/autopsy")


def test_the_store_is_made_for_its_owner_alone(store: Path) -> None:
    place.provide(place.expendable_path())
    for folder in (store, store / "expendable"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    place.provide(store)  # a second time it is as good


def test_root_makes_no_folder_of_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.need_root()
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "var/lib/autopsy"))
    with pytest.raises(FileNotFoundError):
        place.provide(place.store_path())
    assert list(tmp_path.iterdir()) == []


def test_a_link_or_a_folder_of_anothers_is_no_store(store: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    store.symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        place.provide(place.expendable_path())
    assert list(elsewhere.iterdir()) == []
    store.unlink()
    store.mkdir()
    store.chmod(0o777)
    with pytest.raises(NotPrivate):
        place.provide(store)
    with pytest.raises(NotPrivate):
        entries()


def test_a_user_makes_what_is_missing_below_his_own_home_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with strangers.everybodys() as open_to_all:
        home, roots = open_to_all / "home", open_to_all / "roots"
        for folder in (home, roots):
            folder.mkdir()
        roots.chmod(0o777)
        os.chown(home, STRANGER, STRANGER)
        monkeypatch.setenv("HOME", str(home))
        strangers.does(lambda: place.provide(place.expendable_path()))
        made = home / ".local/state/autopsy/expendable"
        assert (made.stat().st_uid, stat.S_IMODE(made.stat().st_mode)) == (STRANGER, 0o700)
        monkeypatch.setenv("XDG_STATE_HOME", str(roots / "state"))
        strangers.does(_is_refused)
        assert list(roots.iterdir()) == []


def _is_refused() -> None:
    with pytest.raises(NotPrivate):
        place.provide(place.store_path())


def test_only_our_own_bundles_are_listed_the_oldest_first_with_what_stands_beside_them(store: Path) -> None:
    put(store, f"autopsy-web1-{NEW}Z", 100)
    (store / f"autopsy-web1-{NEW}Z.html").write_bytes(b"y" * 50)
    put(store, f"autopsy-a-b-{OLD}Z-2", expendable=True)
    (store / "autopsy-link-20260101T000000Z.tar.zst").symlink_to("/etc/passwd")
    (store / ".autopsy-half.tar.zst").write_bytes(b"")
    (store / "notes.txt").write_bytes(b"")
    if os.geteuid() == 0:
        os.chown(put(store, f"autopsy-theirs-{NEW}Z"), STRANGER, STRANGER)
    old, new = entries()
    assert (old.vm, old.expendable, old.size) == ("a-b", True, 10)
    assert (new.vm, new.expendable, new.size) == ("web1", False, 150)
    assert new.when - old.when > 6 * 365 * 86400


def test_what_goes_is_the_oldest_that_nobody_asked_for_and_never_the_newest(store: Path) -> None:
    put(store, "autopsy-asked-20200101T000000Z")
    for day in ("02", "03", "04"):
        put(store, f"autopsy-drill-202001{day}T000000Z", expendable=True)
    stored = entries()
    assert names(removal.superfluous(stored, 0)) == []
    assert names(removal.superfluous(stored, 1)) == ["autopsy-drill-20200102T000000Z"]
    everything = ["autopsy-drill-20200102T000000Z", "autopsy-drill-20200103T000000Z"]
    assert names(removal.superfluous(stored, 1 << 40)) == everything


def test_a_store_that_is_too_large_shrinks_and_says_what_is_still_too_much(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "MOST_BYTES", 150)
    monkeypatch.setattr(removal, "FREE_BYTES", 0)
    put(store, "autopsy-drill-20200101T000000Z", 100, expendable=True)
    kept = put(store, "autopsy-asked-20200102T000000Z", 100)
    put(store, "autopsy-asked-20200103T000000Z", 100)
    gone, room = removal.make_room()
    assert names(gone) == ["autopsy-drill-20200101T000000Z"]
    assert (room.used, room.short) == (200, 50)
    assert kept.exists()


def test_room_goes_by_the_share_of_the_disk_and_by_what_stays_free() -> None:
    assert removal.Room(used=5, most=10, free=9, keep=8).short == 0
    assert removal.Room(used=15, most=10, free=9, keep=8).short == 5
    assert removal.Room(used=5, most=10, free=1, keep=8).short == 7


@pytest.mark.parametrize(("age", "seconds"), [("90min", 5400), ("12h", 43200), ("30d", 2592000), ("2w", 1209600)])
def test_an_age_has_a_unit(age: str, seconds: int) -> None:
    assert removal.seconds_of(age) == seconds


@pytest.mark.parametrize("age", ["", "30", "d", "-1d", "1m", "1 month", "9999999d"])
def test_what_is_no_age_is_told(age: str) -> None:
    with pytest.raises(UsageError, match="is no age"):
        removal.seconds_of(age)


def test_a_capture_is_meant_by_last_its_name_how_it_begins_or_its_vm(store: Path) -> None:
    for name in (f"autopsy-web1-{OLD}Z", f"autopsy-web1-{NEW}Z", f"autopsy-db-{OLD}Z"):
        put(store, name)
    stored = entries()
    assert chosen("last", stored).name == f"autopsy-web1-{NEW}Z"
    assert chosen("web1", stored).name == f"autopsy-web1-{NEW}Z"
    assert chosen(f"autopsy-web1-{OLD}Z.tar.zst", stored).name == f"autopsy-web1-{OLD}Z"
    assert chosen("web1-2020", stored).name == f"autopsy-web1-{OLD}Z"
    with pytest.raises(UsageError, match="2 captures begin so"):
        chosen("web1-", stored)
    with pytest.raises(UsageError) as caught:
        chosen("wbe1", stored)
    assert "did you mean autopsy-web1-" in caught.value.remedy
    with pytest.raises(UsageError, match="nothing is stored"):
        chosen("last", ())


def autopsy(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autopsy", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def answer(*words: str | Path) -> Any:
    done = autopsy(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_imported_goes_to_the_store_is_listed_shown_and_removed(store: Path, tmp_path: Path) -> None:
    assert autopsy("list").stdout == f"nothing is stored in {store}\n"
    assert answer("list")["captures"] == []
    text = tmp_path / "bt.txt"
    text.write_text(PASTE)
    bundle = Path(answer("import", text)["bundle"])
    assert bundle.parent == store
    put(store, f"autopsy-cut-{OLD}Z")  # no bundle at all

    listed = answer("list")
    assert (listed["store"], listed["used"]) == (str(store), sum(each["size"] for each in listed["captures"]))
    cut, whole = listed["captures"]
    assert (cut["verdict"], cut["kept"]) == (None, "asked for")
    assert "not a whole bundle" in cut["trouble"]
    assert (whole["bundle"], whole["verdict"]["where"], whole["kill"]["done"]) == (str(bundle), "host", False)
    assert "STUCK" in autopsy("list").stdout.splitlines()[1]

    for word in ("last", bundle, bundle.name):
        shown = autopsy("show", word)
        assert shown.stdout.startswith("STUCK    ")
        assert f"report   {bundle.with_name(bundle.name.removesuffix('.tar.zst') + '.html')}" in shown.stdout
        assert f"bundle   {bundle}" in shown.stdout
    assert answer("show")["verdict"] == whole["verdict"]
    assert autopsy("show", f"autopsy-cut-{OLD}Z").returncode == 7

    assert autopsy("rm").returncode == 2
    assert answer("rm", "--older", "30d", "--dry-run")["removed"] == [cut["bundle"]]
    assert answer("rm", "--older", "30d")["removed"] == [cut["bundle"]]
    assert [each["bundle"] for each in answer("list")["captures"]] == [str(bundle)]
    autopsy("rm", "last")
    assert list(store.glob("*")) == []


def test_a_report_is_opened_only_where_there_is_a_desktop(store: Path, tmp_path: Path) -> None:
    text = tmp_path / "bt.txt"
    text.write_text(PASTE)
    autopsy("import", text)
    words = [sys.executable, "-m", "autopsy", "show", "--open"]
    bare = {name: value for name, value in os.environ.items() if name not in {"DISPLAY", "WAYLAND_DISPLAY"}}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=bare)
    assert done.returncode == 2
    assert "there is no desktop here" in done.stderr
    assert done.stdout.startswith("STUCK")
    assert store.is_dir()
