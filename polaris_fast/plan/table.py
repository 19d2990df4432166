"""The plan as text for a terminal, and as JSON."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .build import Plan
from .hardware import GIB
from .memory import FRAGMENTATION, MemoryPlan

VALIDATED = (
    "Validated: bytes of weights, masters, gradients, moments, activations and the fused head of "
    "one process on a CPU, against torch's allocator (tests/plan, within 10 %)."
)
ASSUMED_MEMORY = (
    "Assumed: what FlashAttention, fla and Liger save on a GPU (read in their sources), "
    "DeepSpeed's buffers (two CPU ranks, scaled), generation's working tensors, CUDA context and "
    f"NCCL, {FRAGMENTATION:.0%} for fragmentation."
)
ASSUMED_TIME = (
    "Assumed: every second and token count below memory, from the data sheet's rates and these "
    "shares; change them with --assume NAME=VALUE:"
)


def gib(size: int) -> str:
    """`61.3 GiB`, or MiB for what is small."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"


def render(plan: Plan, width: int = 100, *, colour: bool = False) -> str:
    """The whole report."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, highlight=False, soft_wrap=False
    )
    for note in plan.notes:
        console.print(note, style="bold")
    for part in (_head(plan), memory_table(plan.memory), _layer_table(plan), _verdict(plan)):
        console.print(part)
    if plan.advice:
        console.print(_advice_table(plan))
    console.print(_time_table(plan))
    console.print(_cost_table(plan))
    if plan.cost.not_counted:
        console.print("Not counted above:")
    for found in plan.cost.not_counted:
        console.print(f"  {found.words} ({', '.join(found.keys)})")
    assumed = ", ".join(f"{name}={value:g}" for name, value in asdict(plan.assumed).items())
    for line in (VALIDATED, ASSUMED_MEMORY, f"{ASSUMED_TIME} {assumed}."):
        console.print(line, style="dim")
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def memory_summary(plan: MemoryPlan, name: str) -> str:
    """The memory alone, as plain text: what `--dry-run` prints."""
    console = Console(file=io.StringIO(), width=96, highlight=False)
    console.print(memory_table(plan))
    verdict = "fits" if plan.fits else "does not fit"
    console.print(f"{name}: needs {gib(plan.total)} of {gib(plan.available)}: it {verdict}.")
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def memory_table(plan: MemoryPlan) -> Table:
    """One line a phase, largest phase marked."""
    table = Table(box=box.SIMPLE, title="Memory of one rank", title_justify="left")
    table.add_column("phase")
    table.add_column("tensors", justify="right")
    table.add_column("of which", overflow="fold")
    for phase in plan.phases:
        pieces = ", ".join(
            f"{name} {gib(size)}"
            for name, size in sorted(phase.pieces, key=lambda piece: -piece[1])
            if size >= 0.005 * phase.bytes
        )
        is_peak = phase is plan.peak_phase
        table.add_row(
            f"{phase.name} (peak)" if is_peak else phase.name,
            gib(phase.bytes),
            pieces,
            style="bold" if is_peak else None,
        )
    if plan.overhead:
        table.add_row("fragmentation", gib(plan.margin), "")
        table.add_row("context, NCCL", gib(plan.overhead), "")
    return table


def _head(plan: Plan) -> str:
    shape, config, engine = plan.shape, plan.config, plan.config.engine
    kind: str = engine.kind
    if kind == "deepspeed":
        kind += f" ZeRO-{engine.zero_stage}"
        kind += " + offloaded weights" if engine.offload_param else ""
    kind += " + offloaded optimizer" if engine.offload_optimizer else ""
    kind += " + 8-bit moments" if config.optim == "adamw_8bit" else ""
    kind += " + Liger's kernels" if config.liger_kernels else ""
    kind += f", LoRA of rank {config.lora.r}" if config.lora.r else ""
    words: dict[bool | str, str] = {True: "on", False: "off"}
    checkpointing = words.get(config.gradient_checkpointing, config.gradient_checkpointing)
    ranks = f" ({plan.num_ranks} train)" if plan.num_ranks < plan.machine.count else ""
    return (
        f"{shape.name}: {shape.num_parameters / 1e9:.3f} B parameters ({shape.source})\n"
        f"{plan.machine.count} x {plan.machine.name}{ranks}, {config.dtype}, {kind}, gradient "
        f"checkpointing {checkpointing}, micro-batches of "
        f"{config.packing.max_tokens_per_microbatch:,} tokens\n"
    )


def _layer_table(plan: Plan) -> Table:
    """What a layer of each kind leaves for backward, and needs while it runs."""
    micro_batch = plan.memory.micro_batch
    tokens = sum(prompt + completion for prompt, completion in plan.memory.rows)
    table = Table(
        box=box.SIMPLE, title=f"Activations of a micro-batch, {tokens:,} tokens",
        title_justify="left",
    )  # fmt: skip
    table.add_column("part")
    for name in ("count", "left for backward", "peak forward", "peak backward"):
        table.add_column(name, justify="right")
    parts = [("embedding", 1, micro_batch.embedding)]
    for kind, layer in micro_batch.layers.items():
        parts.append((kind, micro_batch.order.count(kind), layer))
    parts.append(("final norm and head", 1, micro_batch.head))
    for name, count, stage in parts:
        sizes = (stage.saved, stage.forward, stage.backward)
        table.add_row(name, str(count), *map(gib, sizes))
    return table


def _verdict(plan: Plan) -> str:
    memory = plan.memory
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    lines = [
        f"Needs {gib(memory.total)} of {gib(memory.available)} a rank: {verdict}. "
        f"The peak is in: {memory.peak_phase.name}."
    ]
    if memory.engine.host and plan.machine.device == "cuda":
        lines.append(f"CPU memory: about {gib(memory.engine.host)} for all ranks together.")
    servers = memory.servers
    if servers is not None:
        where = " (on the ranks' GPUs, asleep while they train)" if servers.sleeps else ""
        lines.append(
            f"vLLM: {servers.count} servers of {servers.gpus_each} GPUs{where}, each writes "
            f"{servers.rows} rows of full length at once in {gib(servers.memory)} a GPU."
        )
    if plan.longest_row:
        lines.append(
            f"Longest row that fits: {plan.longest_row:,} tokens, prompt included (trained alone "
            "in its micro-batch, and written)."
        )
    else:
        lines.append("No row fits with these settings.")
    if not memory.fits:
        found = " ".join(plan.remedy) if plan.remedy else "no switch of this configuration suffices"
        lines.append(f"To make it fit: {found}.")
    return "\n".join(lines) + "\n"


def _advice_table(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE, title="To fit more, each alone", title_justify="left")
    table.add_column("setting", no_wrap=True)
    table.add_column("saves", justify="right", no_wrap=True)
    table.add_column("fits")
    table.add_column("longest row", justify="right")
    table.add_column("price")
    for advice in plan.advice:
        table.add_row(
            "\n".join(advice.settings),
            gib(advice.saving),
            "yes" if advice.fits else "no",
            f"{advice.longest_row:,}" if advice.longest_row else "-",
            advice.note,
        )
    return table


def _time_table(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE, title="Time of a step (assumed rates)", title_justify="left")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for name, seconds in plan.step.phases:
        table.add_row(name, f"{seconds:,.1f}")
    table.add_row("step", f"{plan.step.total:,.1f}", style="bold")
    balance = plan.step.balance
    table.add_row(
        f"ranks wait in training (rows: {plan.lengths_source})", f"{balance.idle_share:.1%}"
    )
    table.add_row("micro-batches a step, all ranks", f"{balance.slots_per_step:.1f}")
    table.add_row(
        "tokens a step: written / trained",
        f"{plan.step.rollout_tokens:,.0f} / {plan.step.train_tokens:,.0f}",
    )
    return table


def _cost_table(plan: Plan) -> Table:
    cost = plan.cost
    table = Table(
        box=box.SIMPLE, title="The whole run (assumed rates)", title_justify="left",
        show_header=False,
    )  # fmt: skip
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_row(
        f"steps ({cost.num_prompts:,} prompts, {cost.prompts_source})", f"{cost.num_steps:,}"
    )
    table.add_row("hours", f"{cost.hours:,.1f}")
    table.add_row("GPU hours", f"{cost.gpu_hours:,.1f}")
    table.add_row("GPUs", usd(cost.gpu_usd, "--assume gpu_hour_usd=..."))
    table.add_row("judgements", f"{cost.judgements:,}")
    table.add_row(
        "judge tokens: read / written",
        f"{cost.judge_prompt_tokens / 1e6:,.1f} M / {cost.judge_completion_tokens / 1e6:,.1f} M",
    )
    table.add_row("judge", usd(cost.judge_usd, "set judge.price_input and price_output"))
    return table


def usd(value: float | None, remedy: str) -> str:
    return f"price unknown ({remedy})" if value is None else f"{value:,.0f} USD"


def as_json(plan: Plan) -> dict[str, Any]:
    """The numbers of the report; bytes, seconds, tokens, USD."""
    memory, step = plan.memory, plan.step
    return {
        "model": {
            "name": plan.shape.name,
            "source": plan.shape.source,
            "num_parameters": plan.shape.num_parameters,
        },
        "machine": asdict(plan.machine),
        "memory": {
            "phases": {phase.name: dict(phase.pieces) for phase in memory.phases},
            "peak_phase": memory.peak_phase.name,
            "fragmentation": memory.margin,
            "overhead": memory.overhead,
            "total": memory.total,
            "available": memory.available,
            "fits": memory.fits,
            "host": memory.engine.host,
            "layers": {kind: asdict(layer) for kind, layer in memory.micro_batch.layers.items()},
        },
        "longest_row": plan.longest_row,
        "remedy": plan.remedy,
        "advice": [asdict(advice) for advice in plan.advice],
        "step_seconds": dict(step.phases) | {"total": step.total},
        "balance": asdict(step.balance),
        "run": asdict(plan.cost) | {"total_usd": plan.cost.total_usd},
        "assumed": asdict(plan.assumed),
        "lengths": plan.lengths_source,
        "notes": [*plan.notes, VALIDATED, ASSUMED_MEMORY, ASSUMED_TIME],
    }
