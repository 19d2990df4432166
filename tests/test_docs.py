"""The commands that the documentation tells people to run are commands that are accepted."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from polaris_fast.cli import parse_overrides
from polaris_fast.config_file import load_config

ROOT = Path(__file__).resolve().parents[1]
STARTS = ("polaris_fast.train", "polaris train", "polaris_fast.sft", "polaris sft")
LAUNCHERS = {"torchrun", "deepspeed"}


def indented(page: Path) -> list[str]:
    """Its code, a command a line."""
    joined = page.read_text().replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.startswith("    ")]


def training() -> list[tuple[str, str, str]]:
    """(page, what starts it, arguments) of every command that trains."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for line in indented(page):
            for start in STARTS:
                before, is_one, arguments = line.partition(start + " ")
                if is_one:
                    found.append((page.name, before, arguments))
    return found


def written_out(arguments: str) -> list[str]:
    """The words, with a value for `...` after a key; elsewhere it stands for any further ones."""
    words: list[str] = []
    for word in shlex.split(arguments, comments=True):
        if word == "..." and words and words[-1].startswith("--"):
            words.append("given")
        elif word not in ("...", "$RESUME"):
            words.append(word)
    return words


@pytest.mark.parametrize(("page", "before", "arguments"), training())
def test_a_command_that_trains_is_accepted(page: str, before: str, arguments: str) -> None:
    overrides = parse_overrides(written_out(arguments))
    overrides.pop("dry_run", None)
    config = load_config(overrides.pop("config", None), overrides)
    if config.engine.kind == "deepspeed":  # it runs under a launcher alone
        assert LAUNCHERS & set(before.split())


def test_servers_of_a_persons_own_are_started_alike_everywhere() -> None:
    pages = [ROOT / "docs" / name for name in ("vllm.md", "launch.md")]
    serving = [line for page in pages for line in indented(page) if "vllm serve" in line]
    assert len(serving) == len(pages)
    for line in serving:
        flags = {"--skip-tokenizer-init", "--language-model-only", "--enable-scale-out"}
        assert flags <= set(shlex.split(line))


PROGRAMS = {
    "srun": "echo $$ > trainer; echo started >> log; exec sleep 20",
    "scancel": 'echo scancel "$@" >> log; kill $(cat trainer)',
    "scontrol": '[ "$1" = requeue ] && echo scontrol "$@" >> log',
}


@pytest.mark.parametrize(("status", "is_queued"), [("interrupted", True), ("finished", False)])
def test_a_slurm_job_that_its_limit_stops_is_queued_again_unless_the_run_is_done(
    status: str, is_queued: bool, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "launch.md").read_text()
    script = "#!/bin/bash" + page.partition("#!/bin/bash")[2].partition("\n\n")[0]
    script = script.replace("/shared", str(tmp_path))
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/summary.json").write_text(f'{{"status": "{status}"}}')
    for name, body in PROGRAMS.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\ncd {tmp_path}\n" + body)
        program.chmod(0o755)
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mine", "SLURM_NNODES": "1"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    job = subprocess.Popen(["bash", "-c", script], env=os.environ | given | {"PATH": path})
    log = tmp_path / "log"
    while not log.exists():
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) != 0
    ends = ["scontrol requeue 7"] if is_queued else []
    assert log.read_text().splitlines() == ["started", "scancel --signal=INT 7", *ends]
