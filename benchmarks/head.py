"""One head case: everybody is checked against float64, then measured side by side.

    from benchmarks.head import measure_case
    report = measure_case(case, torch.device("cpu"), budget_s=15)

`python -m benchmarks.head` measures a set of cases without pytest, writing its JSON after each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import head_ours as ours
from . import head_peers as peers
from .head_cases import DTYPES, SIZES, HeadCase, HeadInputs, default_size
from .head_exact import TOLERANCE, inputs_and_exact
from .head_floor import find_floor
from .head_peers import Missing
from .head_table import render
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
            for key in ("missing", "wrong"):
                listed = {e.provider: getattr(e, key) for e in self.entries.values()}
                info[key] = {name: why for name, why in listed.items() if why}
        return info

    def measured(self) -> list[str]:
        """Providers with samples."""
        return [name for name, entry in self.entries.items() if entry.samples_ms]


def providers_of(case: HeadCase, device: str) -> dict[str, Builder | str]:
    """Every provider by name but the floor. Plain torch is the first: ours are held to it."""
    return {**PEERS[case.task], **ours.providers(case, device)}


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

    def measure(self, budget_s: float) -> CaseReport:
        """Time the providers and the floor, taking turns, for about `budget_s` in all."""
        case, device = self.inputs.case, self.inputs.device
        floor = find_floor(self.inputs)
        calls = {FLOOR: floor.call, **self.calls}
        entries = {FLOOR: Entry(FLOOR), **self.entries}
        for name, samples in take_turns(calls, device, budget_s=budget_s).items():
            entries[name].samples_ms = samples
        return CaseReport(case, device.type, torch.get_num_threads(), floor.form, entries)


def prepare_case(
    case: HeadCase, device: torch.device, chosen: Collection[str] = ()
) -> PreparedCase:
    """Build and check every provider of a case; arguments as for `measure_case`."""
    # a limit on recompilations would send later shapes to eager mode in silence
    torch._dynamo.reset()
    inputs, exact = inputs_and_exact(case, device)
    entries: dict[str, Entry] = {}
    calls: dict[str, Call] = {}
    for name, builder in providers_of(case, device.type).items():
        if not is_chosen(name, chosen):
            continue
        entry = entries[name] = Entry(name)
        call = _build(entry, builder, inputs)
        if call is None:
            continue
        found, entry.peak_extra_mib = run_with_peak(call, device)
        entry.errors = exact.errors(found)
        del found
        plain = entries[PLAIN].errors if PLAIN in entries else {}
        entry.wrong = _fault(entry, _limits(entry, case, plain))
        if entry.wrong is None:
            calls[name] = call
    return PreparedCase(inputs, entries, calls)


def measure_case(
    case: HeadCase, device: torch.device, *, budget_s: float, chosen: Collection[str] = ()
) -> CaseReport:
    """Check, then measure, every provider of a case.

    Args:
        case: the problem.
        device: "cpu" or "cuda".
        budget_s: about how long the timed rounds may take together.
        chosen: names of providers or projects; none: all. The floor is always there.
    """
    return prepare_case(case, device, chosen).measure(budget_s)


def _build(entry: Entry, builder: Builder | str, inputs: HeadInputs) -> Call | None:
    """The provider's call, run once; or None and the reason in the entry."""
    if isinstance(builder, str):
        entry.missing = builder
        return None
    try:
        call = builder(inputs)
        call.once()
        return call
    except Missing as reason:
        entry.missing = str(reason)
    except Exception as error:
        if _is_ours(entry) and not isinstance(error, torch.OutOfMemoryError):
            raise
        entry.missing = _one_line(error)
    if inputs.device.type == "cuda":
        # what a failed call has left behind is in nobody's way then
        torch.cuda.empty_cache()
    return None


def _limits(entry: Entry, case: HeadCase, plain: dict[str, float]) -> dict[str, float]:
    """The largest error of each result; ours may be twice as far off as plain torch."""
    limits = dict.fromkeys(entry.errors, TOLERANCE[case.dtype])
    if _is_ours(entry):
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


def _is_ours(entry: Entry) -> bool:
    return entry.provider.startswith(ours.OURS)


def _one_line(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"failed with {type(error).__name__}: {first}"[:200]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", choices=SIZES, help="default: by device")
    parser.add_argument("--cases", nargs="+", metavar="ID", help="only these of the set")
    parser.add_argument("--providers", nargs="+", default=(), help="only these, or projects")
    parser.add_argument("--budget_s", type=float, default=10.0, help="timed seconds a case")
    parser.add_argument("--limit_s", type=float, default=float("inf"), help="no case starts later")
    parser.add_argument("--json", type=Path, help="written after each case")
    known = parser.parse_args(arguments)
    cases = SIZES[known.sizes or default_size(known.device)]()
    if known.cases:
        unknown = set(known.cases) - {case.id for case in cases}
        if unknown:
            parser.error(
                f"--cases {' '.join(sorted(unknown))}: the set has {[c.id for c in cases]}"
            )
        cases = [case for case in cases if case.id in known.cases]
    measure = partial(
        measure_case,
        device=torch.device(known.device),
        budget_s=known.budget_s,
        chosen=known.providers,
    )
    faults = run_cases(cases, measure, limit_s=known.limit_s, out=known.json)
    for fault in faults:
        print(f"WRONG: {fault}")
    return 1 if faults else 0


def run_cases(
    cases: list[HeadCase],
    measure: Callable[[HeadCase], CaseReport],
    *,
    limit_s: float,
    out: Path | None,
) -> list[str]:
    """Measure one case after the other, printing each table; the faults found.

    Args:
        cases: in order of importance.
        measure: what makes a case's report.
        limit_s: cases that would start later are named in the JSON instead.
        out: a JSON file, complete after each case.
    """
    started = time.monotonic()
    results: dict[str, Any] = {"entries": [], "skipped": []}
    faults = []
    for case in cases:
        if time.monotonic() - started > limit_s:
            results["skipped"].append(case.id)
            print(f"{case.id}: skipped, {limit_s:.0f} s are over", flush=True)
        else:
            report = measure(case)
            made = [report.info(name) for name in report.measured()]
            results["entries"] += made
            wrong = [entry for entry in report.entries.values() if entry.wrong]
            faults += [f"{case.id}: {entry.provider}: {entry.wrong}" for entry in wrong]
            print(render(made) + "\n", flush=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n")
    return faults


if __name__ == "__main__":
    raise SystemExit(main())
