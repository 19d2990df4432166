"""The result as tables for a terminal: the paper's first, then length, text, pairs and memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .measures import LENGTH, MEASURES, QUALITY, TEXT, Measure

BY_BUCKET = ("quality", "length_ratio", "abs_log_ratio", "within_20", "s_l", "s")
NOTHING = "-"
ELO = Measure("elo", "Elo", 1, 0)
EXTRACTED = Measure("extracted", "Extracted", -1, 0, True)
VERBATIM = Measure("verbatim_share", "Verbatim n-grams", -1, 1, True)


def print_result(result: dict[str, Any], console: Console) -> None:
    """Every table that has something to say."""
    for part in tables(result):
        console.print(part)


def tables(result: dict[str, Any]) -> list[RenderableType]:
    """The tables in order, each under its title."""
    known = {key for model in result["models"] for key in model["measures"]}
    found: list[RenderableType] = [
        bucket_table(result, MEASURES[key]) for key in BY_BUCKET if key in known
    ]
    for title, measures in (("Scores", QUALITY), ("Length", LENGTH), ("Text", TEXT)):
        found.append(measure_table(result, title, measures))
    if result["pairwise"]:
        found.append(pairwise_table(result["pairwise"]))
    if result["memorisation"]:
        found.append(memory_table(result["memorisation"]))
    found += [Padding(Text(f"note: {note}", style="yellow"), (0, 1)) for note in result["notes"]]
    return found


def bucket_table(result: dict[str, Any], measure: Measure) -> RenderableType:
    """One measure by bucket, with all lengths, the slope, and the gain over the first model."""
    labels, models = result["buckets"], result["models"]
    table = _table(f"{measure.label} by words asked for")
    table.add_column("model", overflow="fold", min_width=9)
    for name in (*labels, "all (95 %)", "slope", "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in models:
        numbers = model["measures"].get(measure.key)
        beside = remarks(result, model, measure)
        if numbers is None:
            unknown = [NOTHING] * len(labels)
            whole = _two_lines(NOTHING, beside)
            table.add_row(Text(model["name"]), *unknown, whole, NOTHING, NOTHING)
            continue
        table.add_row(
            Text(model["name"]),
            *[value_text(numbers["buckets"].get(label), measure) for label in labels],
            _two_lines(interval_text(numbers["all"], measure), beside),
            _two_lines(interval_text(numbers["slope"], measure, signed=True)),
            _two_lines(interval_text(numbers["gain"], measure, signed=True)),
        )
    rows = [row for row in result["reference"]["rows"] if measure.key in row]
    if rows and result["paper_buckets"]:
        table.add_section()
        for row in rows:
            numbers = row[measure.key]
            cells = [_reference(numbers.get(key), measure) for key in (*labels, "all", "slope")]
            table.add_row(row["name"], *cells, "", style="dim")
        source = f" dim rows: {result['reference']['source']}"
        if result["settings"]["judge_is_local"] and measure.key == "quality":
            source += "; points of the local heuristic judge cannot be held against them"
        return Group(table, Text(source, style="dim"))
    return table


def measure_table(result: dict[str, Any], title: str, measures: Sequence[Measure]) -> Table:
    """Many measures over all lengths, a column a model."""
    table = _table(f"{title}, all lengths (95 %)")
    table.add_column("measure")
    for model in result["models"]:
        table.add_column(Text(model["name"]), justify="right", no_wrap=True)
    for measure in measures:
        numbers = [model["measures"].get(measure.key) for model in result["models"]]
        if any(numbers):
            shown = [interval_text(n and n["all"], measure) for n in numbers]
            cells = [
                Text("\n".join([text, *remarks(result, model, measure)]))
                for text, model in zip(shown, result["models"], strict=True)
            ]
            table.add_row(measure.label + _arrow(measure), *cells)
    if "s" in [measure.key for measure in measures] and result["paper_buckets"]:
        rows = [row for row in result["reference"]["rows"] if "s" in row]
        table.caption = "S in the paper, on LongBench-Write's own prompts: " + ", ".join(
            f"{row['name']} {row['s']:.1f}" for row in rows
        )
    return table


def pairwise_table(pairwise: dict[str, Any]) -> RenderableType:
    """Elo with intervals, and the judge's preference for a place."""
    table = _table("Pairwise, both orders: Elo by Bradley-Terry (95 %)")
    table.add_column("model")
    table.add_column("Elo", justify="right")
    for name, rating in pairwise["elo"].items():
        lines = [interval_text(rating, ELO), *elo_remarks(pairwise, name)]
        table.add_row(Text(name), Text("\n".join(lines)))
    lines = [
        f" {p['a']} against {p['b']}: won {p['won']}, tied {p['tied']}, lost "
        f"{p['matches'] - p['won'] - p['tied']}; {100 * p['share']:.0f} % of the points"
        for p in pairwise["pairs"]
    ]
    if "consistent" in pairwise:
        lines.append(f" {bias_text(pairwise)}")
    return Group(table, *[Text(line, style="dim") for line in lines], Text(""))


def elo_remarks(pairwise: dict[str, Any], name: str) -> list[str]:
    """On how many prompts a model met another, where that is not the same for all."""
    counts = {name: rating["num_prompts"] for name, rating in pairwise["elo"].items()}
    return [f"{counts[name]} prompts"] if _differ(counts.values()) else []


def bias_text(pairwise: dict[str, Any]) -> str:
    """How far the judge's picks follow the place of a story."""
    stood = f"{100 * pairwise['consistent']:.0f} % of the pairs"
    if "first_place" not in pairwise:
        return f"The judge's pick stood in both orders in {stood}; all its calls were ties"
    return (
        f"The judge's pick stood in both orders in {stood}; it took the first place in "
        f"{100 * pairwise['first_place']:.0f} % of its decided calls"
    )


def memory_table(memorisation: dict[str, Any]) -> RenderableType:
    """The prefix attack, a row a model."""
    table = _table("Memorisation: greedy continuations of training stories (95 %)")
    for name in ("model", "stories", "extracted", "n-grams", "longest", "mean", "exact"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for name, found in memorisation.items():
        table.add_row(
            Text(name),
            str(found["stories"]),
            _two_lines(interval_text(found["intervals"]["extracted"], EXTRACTED)),
            _two_lines(interval_text(found["intervals"]["verbatim_share"], VERBATIM)),
            str(found["longest_max"]),
            f"{found['longest_mean']:.1f}",
            f"{found['exact_mean']:.1f}",
        )
    legend = (
        " extracted: continued verbatim; n-grams: of the continuation, those of the story; longest "
        "and mean: tokens of the longest common run; exact: tokens right from the start, mean"
    )
    return Group(table, Text(legend, style="dim"))


def value_text(interval: dict[str, Any] | None, measure: Measure) -> str:
    """The estimate alone."""
    return NOTHING if interval is None else measure.text(interval["estimate"])


def interval_text(
    interval: dict[str, Any] | None, measure: Measure, *, signed: bool = False
) -> str:
    """The estimate with its bounds, `52.1 [48.0, 56.2]`; without them where they are not known."""
    if interval is None or interval["estimate"] is None:
        return NOTHING
    estimate = measure.text(interval["estimate"])
    if signed and interval["estimate"] > 0:
        estimate = f"+{estimate}"
    if interval["low"] is None:
        return estimate
    low, high = (measure.text(interval[side]).removesuffix(" %") for side in ("low", "high"))
    return f"{estimate} [{low}, {high}]"


def remarks(result: dict[str, Any], model: dict[str, Any], measure: Measure) -> list[str]:
    """What a mean leaves out: empty stories of Story Quality, prompts that other models have."""
    found = []
    if measure.key == "quality" and any(one["num_empty"] for one in result["models"]):
        total = model["num_stories"]
        found.append(f"{total - model['num_empty']} of {total} written")
    counts = {one["name"]: _num_prompts(one, measure) for one in result["models"]}
    if _differ(counts.values()):
        found.append(f"{counts[model['name']]} prompts")
    return found


def _num_prompts(model: dict[str, Any], measure: Measure) -> int:
    numbers = model["measures"].get(measure.key)
    return int(numbers["all"]["num_prompts"]) if numbers else 0


def _differ(counts: Iterable[int]) -> bool:
    return len(set(counts)) > 1


def _two_lines(text: str, beside: Sequence[str] = ()) -> Text:
    """The estimate over its bounds: three such columns fit on a terminal of 80."""
    estimate, bracket, bounds = text.partition(" [")
    below = [f"[{bounds}", *beside] if bracket else beside
    return Text(estimate).append("".join(f"\n{line}" for line in below), style="dim")


def _reference(value: float | None, measure: Measure) -> str:
    return "" if value is None else measure.text(value)


def _arrow(measure: Measure) -> str:
    """Which way is better, in ASCII."""
    return {1: " (+)", -1: " (-)", 0: ""}[measure.better]


def _table(title: str) -> Table:
    style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "pad_edge": False}
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **style)
