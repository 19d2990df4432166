"""A launched server and its trainer's end."""

from __future__ import annotations

import subprocess
import sys

SERVER = """
import os, signal, sys, time
from polaris_fast.rollout.vllm.serve import watch
signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = os.getpid()
if os.fork() == 0:
    watch(int(sys.argv[1]), server, grace_s=0.2)
    os._exit(0)
if sys.argv[2] == "stays" and os.fork() == 0:  # a worker
    time.sleep(60)
print("ready", flush=True)
time.sleep(60 if sys.argv[2] == "stays" else 0)
"""


def start(kind: str) -> tuple[subprocess.Popen[bytes], subprocess.Popen[str]]:
    trainer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(trainer.pid), kind],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return trainer, server


def test_a_deaf_server_and_its_workers_end_after_their_trainer() -> None:
    trainer, server = start("stays")
    trainer.kill()
    trainer.wait()
    server.communicate(timeout=20)  # until the last of them has closed its output
    assert server.returncode == -9


def test_the_watch_ends_with_the_server() -> None:
    trainer, server = start("ends")
    server.communicate(timeout=20)
    assert server.returncode == 0 and trainer.poll() is None
    trainer.kill()
    trainer.wait()
