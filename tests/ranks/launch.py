"""Start a module on several ranks of this machine, as `torchrun` does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[2]
_MARK = "POLARIS_TEST_LAUNCH"


@contextmanager
def started(module: str, *arguments: str, ranks: int = 2) -> Iterator[subprocess.Popen[str]]:
    """The launcher's process, its output both streams of all ranks; ended with the block."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    paths = [str(ROOT), str(ROOT / "kernels")]
    mark = uuid4().hex
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), _MARK: mark}
    process = subprocess.Popen(
        [*command, "--standalone", "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            for pid in processes_with(f"{_MARK}={mark}"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def processes_with(setting: str) -> list[int]:
    """Ids of the processes whose environment holds NAME=value; ranks have sessions of their own."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and setting.encode() in (
                (folder / "environ").read_bytes().split(b"\0")
            ):
                found.append(int(folder.name))
    return found


def run(module: str, *arguments: str, ranks: int = 2, timeout_s: float = 120) -> tuple[int, str]:
    """Exit status and output of a launch that ends by itself."""
    with started(module, *arguments, ranks=ranks) as process:
        output, _ = process.communicate(timeout=timeout_s)
    return process.returncode, output
