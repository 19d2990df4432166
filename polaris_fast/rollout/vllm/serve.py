"""What a launched server's process runs: vLLM's API server, which ends with its trainer.

The trainer stops its servers itself; this covers a trainer that is killed and cannot. Run as
`python -m polaris_fast.rollout.vllm.serve TRAINER_PID [vLLM's arguments]`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    trainer_pid = int(sys.argv[1])
    # Kept across exec; sent when the thread that started this process ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != trainer_pid:  # it ended before the line above
        return
    server = ["-P", "-m", "vllm.entrypoints.openai.api_server", *sys.argv[2:]]
    os.execv(sys.executable, [sys.executable, *server])


if __name__ == "__main__":
    main()
