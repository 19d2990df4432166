"""When a run looks at its held-out prompts, and which checkpoint it calls its best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .best import is_best, mark_best
from .checkpoint import drop_old_checkpoints
from .config import Config
from .evaluate import known_metrics, write_evaluation
from .types import UserError


class RunEvaluations:
    """Evaluations at the start, every `eval_steps` steps and at the end."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        *,
        evaluate: Callable[[], dict[str, Any]] | None,
        save: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        """
        Args:
            evaluate: looks at the held-out prompts now, see `evaluate.evaluate`; None: there
                are none, and nothing is ever evaluated.
            save: writes the checkpoint of the present step, unless it is on the disk.
            note: shows a line that stays.
        """
        self.config, self.run_dir = config, run_dir
        self._evaluate, self._save, self._note = evaluate, save, note

    def at_start(self) -> None:
        """Before the first step of a new run."""
        if self.config.eval_on_start:
            self._write("start", 0)

    def after_step(self, step: int, *, is_last: bool) -> None:
        """Every `eval_steps` steps; the last step's is the one at the end."""
        every = self.config.eval_steps
        if every and step % every == 0 and not (is_last and self.config.eval_on_end):
            self._write(f"step-{step}", step)

    def at_end(self, step: int) -> None:
        """After the last step."""
        if self.config.eval_on_end:
            self._write("end", step)

    def _write(self, name: str, step: int) -> None:
        if self._evaluate is None:
            return
        result = self._evaluate()
        write_evaluation(self.run_dir, name, result)
        metric, metrics = self.config.metric_for_best_model, result["metrics"]
        if metric is None or step == 0:
            return
        if metric not in metrics:  # no story was scored
            self._note(f"step {step}: held-out stories gave no {metric}")
            return
        value = metrics[metric]
        text = f"step {step}: {metric} {value:.4g} on held-out prompts"
        if is_best(self.run_dir, value, metric, greater_is_better=self.config.greater_is_better):
            self._save()
            mark_best(self.run_dir, step, metric, value)
            # the one that was best until now has lost its place
            drop_old_checkpoints(self.run_dir, keep=self.config.save_total_limit, spared=step)
            text += ", the best so far"
        self._note(text)


def check_metric(config: Config, num_held_out: int) -> None:
    """What decides on the best checkpoint can be had.

    Raises:
        UserError: there are no held-out prompts, or no such metric; names those there are.
    """
    metric = config.metric_for_best_model
    if config.eval_steps and not num_held_out:
        raise UserError(
            f"eval_steps ({config.eval_steps}): there are no held-out prompts; set "
            "data.eval_fraction or data.eval_path, or eval_steps to 0"
        )
    if metric is None:
        return
    if not num_held_out or not (config.eval_steps or config.eval_on_end):
        raise UserError(
            f"metric_for_best_model ({metric}): nothing is evaluated; set eval_steps, and "
            "data.eval_fraction or data.eval_path, or metric_for_best_model to null"
        )
    known = known_metrics(config)
    if metric not in known:
        raise UserError(
            f"metric_for_best_model: there is no {metric!r}; choose one of {', '.join(known)}"
        )
