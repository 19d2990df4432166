"""Telling a process that was killed from one that still runs."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def process_token(pid: int) -> str:
    """A name for a running process that no later one with its number has; "" when it is gone.

    On Linux: boot, namespace of process numbers, number and start time. A process of another
    container or boot cannot be seen from here and counts as gone. Elsewhere: the number alone.
    """
    if not (_PROC / "self").exists():
        return _token_by_signal(pid)
    try:
        # The name in parentheses may hold anything; the start time is the line's field 22.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""
    state, start = fields[0], fields[19]
    return "" if state in "ZX" else f"{pid} {boot} {namespace} {start}"  # Z: killed, not reaped


def is_alive(token: str) -> bool:
    """Whether the process of a token still runs."""
    pid = token.partition(" ")[0]
    return pid.isdecimal() and process_token(int(pid)) == token


def _token_by_signal(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # another user's, but there
        pass
    return str(pid)
