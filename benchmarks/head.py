"""One head case: everybody is checked against float64, then measured side by side.

    from benchmarks.head import measure_case
    report = measure_case(case, torch.device("cpu"), budget_s=15)

`python -m benchmarks.head` measures a set of cases without pytest, writing its JSON after each. A
provider that fails is in it by name, and the others are measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from . import head_ours as ours
from . import head_peers as peers
from .head_cases import DTYPES, SIZES, HeadCase, HeadInputs, default_size
from .head_exact import TOLERANCE, Exact, inputs_and_exact
from .head_floor import find_floor
from .head_peers import Missing
from .head_table import render
from .journal import LIMIT_S, DeviceLost, Journal, add_arguments
from .measure import Call, quantile, run_with_peak, take_turns

FLOOR = "floor"
PLAIN = "torch"

Builder = Callable[[HeadInputs], Call]

_LOSSES: dict[str, Builder | str] = {
    "torch": peers.torch_loss,
    "torch.compile": peers.compiled_loss,
    "trl": peers.trl_loss,
    "liger": peers.liger_chunked,
    "liger (triton)": peers.liger_triton,
    "cut_cross_entropy": peers.cut_cross_entropy,
    "F.linear_cross_entropy": peers.torch_linear_cross_entropy,
}
_ALL_ROWS = "computes every row: as in the dense loss"
_SPARSE = {
    **_LOSSES,
    "liger": _ALL_ROWS,
    "liger (triton)": _ALL_ROWS,
    "F.linear_cross_entropy": _ALL_ROWS,
}
# a text is the reason why the peer has nothing to compare with
PEERS: dict[str, dict[str, Builder | str]] = {
    "loss": _LOSSES,
    "frozen": _LOSSES,
    "sparse_mask": {**_SPARSE, "torch (gathered)": peers.torch_gathered},
    "sparse_loss": _SPARSE,
    "logps": {
        "torch": peers.torch_statistics,
        "torch.compile": peers.compiled_statistics,
        "trl": peers.trl_statistics,
        "liger": "no log-probs from hidden states",
        "cut_cross_entropy": "no entropy",
        "F.linear_cross_entropy": "no entropy",
    },
    "logp_op": {
        **_LOSSES,
        "liger": "a loss, no log-prob op",
        "liger (triton)": "a loss, no log-prob op",
    },
    "logits": {
        "torch": peers.torch_logits,
        "torch.compile": peers.compiled_logits,
        "trl": peers.trl_logits,
        "liger (triton)": peers.liger_logits,
        "cut_cross_entropy": "takes hidden states only",
        "F.linear_cross_entropy": "takes hidden states only",
    },
}


@dataclass
class Entry:
    """One provider in one case: samples, or the reason why there are none."""

    provider: str
    samples_ms: list[float] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    """relative error of each result against float64"""
    peak_extra_mib: float | None = None
    missing: str | None = None
    wrong: str | None = None
    """set when a result failed the gate; it is not timed then"""
    failed: str | None = None
    """what one of ours raised; a peer that raises is missing"""

    @property
    def p50_ms(self) -> float:
        """Median milliseconds."""
        return quantile(self.samples_ms, 0.5)


@dataclass
class CaseReport:
    """All providers of one case."""

    case: HeadCase
    device: str
    threads: int
    floor_form: str
    entries: dict[str, Entry]

    def info(self, provider: str) -> dict[str, Any]:
        """What a measured provider's result says beside its samples, ready for JSON."""
        entry, floor = self.entries[provider], self.entries[FLOOR]
        case = self.case
        info: dict[str, Any] = {
            "case": case.id,
            "task": case.task,
            "provider": provider,
            "shape": case.sizes,
            "dtype": case.dtype,
            "device": self.device,
            "threads": self.threads,
            "rounds": len(entry.samples_ms),
            "p20_ms": quantile(entry.samples_ms, 0.2),
            "p50_ms": entry.p50_ms,
            "p80_ms": quantile(entry.samples_ms, 0.8),
            "floor_ms": floor.p50_ms,
            "share_of_floor": floor.p50_ms / entry.p50_ms,
            "peak_extra_mib": entry.peak_extra_mib,
            "rel_error": max(entry.errors.values(), default=None),
            "errors": entry.errors,
        }
        if provider == FLOOR:
            info["form"] = self.floor_form
            for key in ("missing", "wrong", "failed"):
                listed = {e.provider: getattr(e, key) for e in self.entries.values()}
                info[key] = {name: why for name, why in listed.items() if why}
        return info

    def measured(self) -> list[str]:
        """Providers with samples."""
        return [name for name, entry in self.entries.items() if entry.samples_ms]

    def faults(self) -> list[str]:
        """Who was wrong, and who of ours failed."""
        found = ((e.provider, e.wrong or e.failed) for e in self.entries.values())
        return [f"{self.case.id}: {name}: {why}" for name, why in found if why]


def providers_of(case: HeadCase, device: str) -> dict[str, Builder | str]:
    """Every provider by name but the floor: plain torch, which ours are held to, ours, peers."""
    peers_of_task = PEERS[case.task]
    plain = {name: peers_of_task[name] for name in (PLAIN,) if name in peers_of_task}
    return {**plain, **ours.providers(case, device), **peers_of_task}


def is_chosen(provider: str, chosen: Collection[str]) -> bool:
    """Whether a provider, or the project before its brackets, is among the chosen ones."""
    return not chosen or provider in chosen or provider.partition(" (")[0] in chosen


@dataclass
class PreparedCase:
    """A case whose providers have been built and held to float64."""

    inputs: HeadInputs
    entries: dict[str, Entry]
    calls: dict[str, Call]
    """of the providers to time"""

    journal: Journal

    def measure(self, budget_s: float, our_rounds: int = 0) -> CaseReport:
        """Time the providers and the floor, taking turns, for about `budget_s` in all.

        Args:
            our_rounds: the least number of samples of ours and of the floor.
        """
        case, device = self.inputs.case, self.inputs.device
        floor = find_floor(self.inputs)
        calls = {FLOOR: floor.call, **self.calls}
        entries = {FLOOR: Entry(FLOOR), **self.entries}
        ours_and_floor = [name for name in calls if name == FLOOR or _is_ours(name)]

        def on_failure(name: str, error: Exception) -> None:
            if name == FLOOR:
                raise error
            self.journal.note(case.id, name, error)
            _set_failed(entries[name], self.journal.failed[f"{case.id}: {name}"])

        taken = take_turns(
            calls,
            device,
            budget_s=budget_s,
            more_rounds=dict.fromkeys(ours_and_floor, our_rounds) if our_rounds else None,
            on_failure=on_failure,
        )
        for name, samples in taken.items():
            entries[name].samples_ms = samples
        return CaseReport(case, device.type, torch.get_num_threads(), floor.form, entries)


def prepare_case(
    case: HeadCase,
    device: torch.device,
    chosen: Collection[str] = (),
    journal: Journal | None = None,
) -> PreparedCase:
    """Build and check every provider of a case; arguments as for `measure_case`."""
    journal = journal or Journal(None, device, {})
    # a limit on recompilations would send later shapes to eager mode in silence
    torch._dynamo.reset()
    inputs, exact = inputs_and_exact(case, device)
    entries: dict[str, Entry] = {}
    calls: dict[str, Call] = {}
    for name, builder in providers_of(case, device.type).items():
        if not is_chosen(name, chosen):
            continue
        entry = entries[name] = Entry(name)
        if isinstance(builder, str):
            entry.missing = builder
            continue
        if not journal.refusal(case.id, name):
            plain = entries[PLAIN].errors if PLAIN in entries else {}
            with journal.trying(case.id, name):
                call = _checked(entry, builder, inputs, exact, plain)
                if call is not None:
                    calls[name] = call
        if why := journal.refusal(case.id, name):
            _set_failed(entry, why)
    return PreparedCase(inputs, entries, calls, journal)


def measure_case(
    case: HeadCase,
    device: torch.device,
    *,
    budget_s: float,
    our_rounds: int = 0,
    chosen: Collection[str] = (),
    journal: Journal | None = None,
) -> CaseReport:
    """Check, then measure, every provider of a case.

    Args:
        case: the problem.
        device: "cpu" or "cuda".
        budget_s: about how long the timed rounds may take together.
        our_rounds: the least number of samples of ours and of the floor, where it is above all's.
        chosen: names of providers or projects; none: all. The floor is always there.
        journal: where failures are noted; none: in the report alone.
    """
    return prepare_case(case, device, chosen, journal).measure(budget_s, our_rounds)


def _checked(
    entry: Entry, builder: Builder, inputs: HeadInputs, exact: Exact, plain: dict[str, float]
) -> Call | None:
    """The provider's call, run and held to float64; or None and the reason in the entry."""
    try:
        call = builder(inputs)
    except Missing as reason:
        entry.missing = str(reason)
        return None
    call.once()
    found, entry.peak_extra_mib = run_with_peak(call, inputs.device)
    entry.errors = exact.errors(found)
    entry.wrong = _fault(entry, _limits(entry, inputs.case, plain))
    return None if entry.wrong else call


def _set_failed(entry: Entry, why: str) -> None:
    # too little memory says something of the machine
    if _is_ours(entry.provider) and torch.OutOfMemoryError.__name__ not in why:
        entry.failed = why
    else:
        entry.missing = why


def _limits(entry: Entry, case: HeadCase, plain: dict[str, float]) -> dict[str, float]:
    """The largest error of each result; ours may be twice as far off as plain torch."""
    limits = dict.fromkeys(entry.errors, TOLERANCE[case.dtype])
    if _is_ours(entry.provider):
        unit = torch.finfo(DTYPES[case.dtype]).eps
        for name, error in plain.items():
            limits[name] = min(limits[name], 2 * error + unit)
    return limits


def _fault(entry: Entry, limits: dict[str, float]) -> str | None:
    """What is wrong with the provider's results, if anything."""
    # written so that nan fails too
    bad = [name for name, error in entry.errors.items() if not error <= limits[name]]
    listed = [f"{name} {entry.errors[name]:.1e} (at most {limits[name]:.1e})" for name in bad]
    return f"relative error against float64: {', '.join(listed)}" if bad else None


def _is_ours(provider: str) -> bool:
    return provider.startswith(ours.OURS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", choices=SIZES, help="default: by device")
    parser.add_argument("--cases", nargs="+", metavar="ID", help="only these of the set")
    parser.add_argument("--providers", nargs="+", default=(), help="only these, or projects")
    parser.add_argument("--budget_s", type=float, default=10.0, help="timed seconds a case")
    parser.add_argument("--our_rounds", type=int, default=0, help="least samples of ours and floor")
    parser.add_argument("--limit_s", type=float, default=float("inf"), help="no case starts later")
    add_arguments(parser)
    known = parser.parse_args(arguments)
    cases = SIZES[known.sizes or default_size(known.device)]()
    if known.cases:
        unknown = set(known.cases) - {case.id for case in cases}
        if unknown:
            parser.error(
                f"--cases {' '.join(sorted(unknown))}: the set has {[c.id for c in cases]}"
            )
        cases = [case for case in cases if case.id in known.cases]
    device = torch.device(known.device)
    journal = Journal(known.json, device, {"entries": [], "skipped": []}, resume=known.resume)
    measure = partial(
        measure_case,
        device=device,
        budget_s=known.budget_s,
        our_rounds=known.our_rounds,
        chosen=known.providers,
        journal=journal,
    )
    try:
        # turns take the budget at least
        run_cases(cases, measure, journal, known.limit_s, LIMIT_S + 2 * known.budget_s)
    except DeviceLost as lost:
        print(f"stopped, the device is lost: {lost}")
        return 1
    for fault in journal.results["faults"]:
        print(f"FAULT: {fault}")
    return 1 if journal.results["faults"] else 0


def run_cases(
    cases: list[HeadCase],
    measure: Callable[[HeadCase], CaseReport],
    journal: Journal,
    limit_s: float,
    case_limit_s: float = LIMIT_S,
) -> None:
    """Measure one case after the other, printing each table; results and faults are in `journal`.

    Args:
        cases: in order of importance; those that the journal has are left out.
        measure: what makes a case's report.
        journal: written after each case.
        limit_s: cases that would start later are named in it instead.
        case_limit_s: of the turns of one case, after which a GPU hangs.
    """
    started = time.monotonic()
    results = journal.results
    faults = results.setdefault("faults", [])
    done = {entry["case"] for entry in results["entries"]}
    for case in cases:
        if case.id in done:
            continue
        if why := journal.refusal("case", case.id):
            faults.append(f"{case.id}: {why}")
        elif time.monotonic() - started > limit_s:
            results["skipped"].append(case.id)
            print(f"{case.id}: skipped, {limit_s:.0f} s are over", flush=True)
        else:
            with journal.trying("case", case.id, limit_s=case_limit_s):
                report = measure(case)
                made = [report.info(name) for name in report.measured()]
                results["entries"] += made
                faults += report.faults()
                print(render(made) + "\n", flush=True)
            if why := journal.refusal("case", case.id):
                faults.append(f"{case.id}: {why}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        journal.write()


if __name__ == "__main__":
    raise SystemExit(main())
