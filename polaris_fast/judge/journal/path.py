"""Where a run's journal is."""

from __future__ import annotations

from pathlib import Path

FILE_NAME = "judge_journal.sqlite"


def journal_path(setting: str | None, run_dir: Path | None) -> Path | None:
    """The file that `judge.journal` means; None: a private journal that ends with the process.

    Args:
        setting: a path; "off"; or None, `judge_journal.sqlite` beside the run's folder, which
            other runs in the same place share.
        run_dir: the run's folder; None outside a run, where there is no journal to default to.
    """
    if setting == "off" or (setting is None and run_dir is None):
        return None
    if setting is not None:
        return Path(setting).expanduser().resolve()
    assert run_dir is not None
    return run_dir.resolve().parent / FILE_NAME
