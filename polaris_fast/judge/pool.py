"""`JudgePool`: many judgements at once for a trainer that is not asynchronous.

    with JudgePool(config.judge) as pool:
        future = pool.submit(JudgeJob(job_id="3/0/2", prompt=prompt, story=story))
        outcome = future.result()      # Scored, Failed or Rejected, never an exception

An asyncio loop runs in a thread of its own; `judging` conducts each job there. The deadline of a
judgement counts the judge's time alone: waiting for a place, for money or for a judge that is down
is not its fault.

With `samples=k` the k judgements run side by side and the job is Scored, with the means, if more
than half of them arrive; flag `samples:2/3` marks the ones that are missing. Otherwise it is
Rejected if the judge refused most of the missing ones, else Failed with their commonest class.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from ..config import JudgeConfig
from ..types import Outcome
from .endpoint import Endpoint, Shared
from .flow.allowance import Allowance
from .flow.bell import Bell
from .flow.cost import CostBudget
from .flow.panel import GroupPanel, Tier
from .health import JudgeHealth
from .jobs import JudgeJob
from .journal import Journal, journal_path
from .judging import Judging
from .local_server import LocalJudge
from .preflight import check_judge
from .reach import check_url
from .retry import Backoff
from .task_set import TaskScorer

FREE_RETRIES = 10.0  # of the retry budget: a short run may retry, too


class JudgePool(TaskScorer):
    """Scores stories with one judge, and another as its fallback; safe to close on Ctrl-C."""

    def __init__(
        self,
        config: JudgeConfig,
        *,
        run_dir: Path | None = None,
        backoff: Backoff | None = None,
        longest_story_tokens: int | None = None,
    ) -> None:
        """Nothing is started before `with`.

        Args:
            run_dir: folder of the run: names its judgements in the journal, which lies beside it.
            backoff: waits between tries; None: 1 s doubling to 60 s.
            longest_story_tokens: of the stories to come, for a check of the judge's context.
        """
        super().__init__("judge-pool")
        self._config, self._backoff = config, backoff or Backoff()
        self._longest_story_tokens = longest_story_tokens
        self._run_dir = run_dir
        self._order = count()
        self._cost = CostBudget(config.max_cost_usd)
        self._retry_budget = Allowance(config.retry_budget, start=FREE_RETRIES)
        self._panel = GroupPanel(has_fallback=config.fallback.base_url is not None)
        self._endpoints: dict[Tier, Endpoint] = {}
        self._local: LocalJudge | None = None
        self._journal: Journal | None = None
        self._judging: Judging | None = None

    def outdated(self, group: str) -> frozenset[str]:
        """Ids of the group's jobs that were scored by a judge that no longer serves the group."""
        return self._panel.outdated(group)

    @property
    def is_paused(self) -> bool:
        """Whether rows wait because a judge is down; from any thread."""
        return any(endpoint.holds_rows_up for endpoint in self._endpoints.values())

    def health(self) -> JudgeHealth:
        """How the judge is doing now, one that rows wait for before others; from any thread."""
        endpoints = list(self._endpoints.values())
        if not endpoints:
            return JudgeHealth()
        shown = next((endpoint for endpoint in endpoints if endpoint.holds_rows_up), endpoints[0])
        return shown.health(self.metrics, self._cost)

    def close(self) -> None:
        """Cancel what is under way (Failed, class `cancelled`) and stop; may be called twice."""
        try:
            super().close()
        finally:
            if self._local is not None:
                self._local.close()

    # below: on the loop

    async def begin(self) -> None:
        """Open the journal, reach the judges, see that they take our requests.

        Raises:
            UserError: names the setting, its value and the remedy.
        """
        self._open_endpoints()
        secrets = [endpoint.client.key for endpoint in self._endpoints.values()]
        path = journal_path(self._config.journal, self._run_dir)
        run = str(self._run_dir or "")
        self._journal = Journal(path, run=run, secrets=secrets).open()
        self._judging = Judging(
            self._endpoints,
            self._panel,
            self._journal,
            self.metrics,
            retry_budget=self._retry_budget,
            backoff=self._backoff,
        )
        for endpoint in self._endpoints.values():
            await endpoint.open(self._judging.probe)
            await check_judge(
                endpoint,
                wait_s=self._backoff.base_s / 2,
                longest_story_tokens=self._longest_story_tokens,
            )

    async def score(self, job: JudgeJob) -> Outcome:
        """The way of one job."""
        assert self._judging is not None
        return await self._judging.outcome(job, next(self._order))

    async def end(self) -> None:
        """Stop probing, close the connections and the journal."""
        for endpoint in self._endpoints.values():
            await endpoint.close()
        if self._journal is not None:
            self._journal.close()

    def gauges(self) -> dict[str, float]:
        """Flow control as it stands; see `metrics`."""
        health = self.health()
        return {
            "limit": float(health.limit),
            "requests_in_flight": float(health.requests_in_flight),
            "waiting": float(health.waiting),
            "throttle_cuts": float(health.throttle_cuts),
            "breaker_open": float(health.is_paused),
            "breaker_opened": float(health.breaker_opened),
            "retry_budget_left": self._retry_budget.left,
            "spent_usd": health.spent_usd,
        }

    def _open_endpoints(self) -> None:
        config, shared = self._config, Shared(self._cost, Bell(), self._backoff)
        if config.base_url is None:
            self._local = LocalJudge()
            base_url = self._local.base_url
        else:
            base_url = check_url(config.base_url)
        self._endpoints[Tier.MAIN] = Endpoint(config, base_url, Tier.MAIN, shared)
        if config.fallback.base_url is not None:
            other = config.for_fallback()
            url = check_url(config.fallback.base_url, "judge.fallback.base_url")
            self._endpoints[Tier.FALLBACK] = Endpoint(other, url, Tier.FALLBACK, shared)
