"""What a launched server's process runs: vLLM's API server, which ends with its trainer.

The trainer stops its servers itself; this covers a trainer that is killed and cannot. Run as
`python -m polaris_fast.rollout.vllm.serve TRAINER_PID [vLLM's arguments]`, in a session of its own.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1
_GRACE_S = 15.0


def main() -> None:
    trainer_pid = int(sys.argv[1])
    # Kept across exec; sent when the thread that started this process ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != trainer_pid:  # it ended before the line above
        return
    server_pid = os.getpid()
    if os.fork() == 0:
        watch(trainer_pid, server_pid, _GRACE_S)
        os._exit(0)
    server = ["-P", "-m", "vllm.entrypoints.openai.api_server", *sys.argv[2:]]
    os.execv(sys.executable, [sys.executable, *server])


def watch(trainer_pid: int, server_pid: int, grace_s: float) -> None:
    """Return when the server ends; kill this session when it outlives its trainer by `grace_s`.

    vLLM answers SIGTERM by waiting for rows that nobody reads any more, for ever.
    """
    try:
        server = os.pidfd_open(server_pid)
    except ProcessLookupError:
        return
    try:
        trainer = os.pidfd_open(trainer_pid)
    except ProcessLookupError:  # gone already
        pass
    else:
        _wait(server, trainer)
    if not _wait(server, timeout_s=grace_s):
        os.killpg(0, signal.SIGKILL)


def _wait(*processes: int, timeout_s: float | None = None) -> bool:
    """Whether one of these has ended in time."""
    poll = select.poll()
    for process in processes:
        poll.register(process, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


if __name__ == "__main__":
    main()
