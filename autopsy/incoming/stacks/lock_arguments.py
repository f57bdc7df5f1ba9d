"""Reads which mutex a thread waits for out of the arguments of its locking functions."""

from __future__ import annotations

from autopsy.bundle.records import Frame
from autopsy.dataclass import dataclass
from autopsy.incoming.stacks.frame_line import HEX

LOCKING = frozenset(
    {
        "pthread_mutex_lock",
        "__pthread_mutex_lock",
        "___pthread_mutex_lock",
        "__pthread_mutex_lock_full",
        "__lll_lock_wait",
        "lll_lock_wait",
        "__lll_lock_wait_private",
        "lll_mutex_lock_optimized",
        "futex_wait",
        "__pthread_mutex_cond_lock",
        "qemu_mutex_lock_impl",
        "qemu_mutex_lock",
        "qemu_rec_mutex_lock_impl",
        "qemu_rec_mutex_lock",
        "_L_lock_",
        "__psynch_mutexwait",
        "_pthread_mutex_firstfit_lock_wait",
        "_pthread_mutex_firstfit_lock_slow",
        "__pthread_mutex_timedlock",
        "__thr_umutex_lock",
    }
)
OLD = "_L_lock_"  # glibc's out-of-line waits, numbered, until 2.18
MUTEXES = ("mutex=", "mutex@entry=")
WORDS = ("futex=", "futex_word=")


def is_locking(function: str) -> bool:
    """Tell whether a function is part of taking a mutex, by every name that glibc and QEMU gave it."""
    return function in LOCKING or function.startswith(OLD)


@dataclass(slots=True)
class Sought:
    """The mutex that the frames read so far wait for; `waits` while nothing but locking functions was met."""

    waits: bool = False
    over: bool = False
    address: int = 0
    symbol: str = ""
    word: int = 0

    def look(self, frame: Frame, text: str) -> None:
        """Look at the next frame outwards."""
        if self.over:
            return
        if not is_locking(frame.function):
            self.over = True
            return
        self.waits = self.waits or frame.function != "futex_wait"
        for key in MUTEXES:
            place = text.find(key)
            if place >= 0:
                self._take(text[place + len(key) :])
        for key in WORDS:
            place = text.find(key)
            if place >= 0 and not self.address:
                self._take(text[place + len(key) :])

    def _take(self, value: str) -> None:
        value = value.removeprefix("mutex@entry=").removeprefix("futex@entry=")
        if not value.startswith("0x"):
            return
        end = 2
        while end < min(len(value), 18) and value[end] in HEX:
            end += 1
        if end > 2:
            self.address = int(value[2:end], 16)
        if value[end : end + 2] == " <" and ">" in value[end : end + 200]:
            self.symbol = value[end + 2 : value.index(">", end)].partition("+")[0]
