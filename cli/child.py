"""Stands in front of every child that the launcher starts; replaced by it with exec.

    python -I -S cli/child.py <parent pid> <signal> <identity> <program> [argument ...]

It ties the child to its parent (`signal` is sent when the parent ends, kill -9 included) and, for a
program that refuses to run as root, gives it another identity:

    same        none; what the launcher is
    namespace   a user namespace of its own, in which this user reads as one that has a name (initdb asks
                for it) and is not root. Files stay this user's
    <uid>       that uid and gid, with CAP_DAC_OVERRIDE kept where the kernel allows it, so that a data
                folder or an interpreter below a 0700 home is still within reach

A program rather than a preexec_fn: forking Python code from a process with threads may deadlock.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.process import die_with_parent

_CLONE_NEWUSER = 0x10000000  # sched.h
_CAP_DAC_OVERRIDE = 1  # linux/capability.h, as is the next
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 47, 2  # prctl(2)


def main(arguments: list[str]) -> None:
    parent, signal_number, identity, *program = arguments
    if identity == "namespace":
        enter_namespace()
    elif identity != "same":
        become(int(identity))
    die_with_parent(int(parent), signal.Signals(int(signal_number)))  # after those: they clear it
    os.execv(program[0], program)


def enter_namespace() -> None:
    """Become a named user of a new user namespace. Raises OSError where that is not allowed (a container)."""
    uid, gid = os.getuid(), os.getgid()
    named = max(user.pw_uid for user in pwd.getpwall())  # nobody, as a rule
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER)")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{named} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{named} {gid} 1")


def become(uid: int) -> None:
    """Give up root for `uid`, for good, but for the right to walk into folders that are not its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # capset(2): header {version, pid 0: self}; then {effective, permitted, inheritable}, low and high words.
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    kept = 1 << _CAP_DAC_OVERRIDE
    if libc.capset(header, struct.pack("6I", kept, kept, kept, 0, 0, 0)) == 0:
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)
    else:  # Not ours to keep: go on without any.
        libc.capset(header, struct.pack("6I", 0, 0, 0, 0, 0, 0))


if __name__ == "__main__":
    main(sys.argv[1:])
