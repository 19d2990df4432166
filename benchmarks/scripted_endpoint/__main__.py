"""`python -m benchmarks.scripted_endpoint`: prints the base URL, serves until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from polaris_fast.collector import setup_spared

from .limits import Limits
from .script import FAULT_CLASSES, STATED_FAULTS, Latency, Script
from .server import Endpoint, serve


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; returns the exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    try:
        asyncio.run(_serve(options))
    except KeyboardInterrupt:
        pass
    return 0


async def _serve(options: argparse.Namespace) -> None:
    script = Script(
        seed=options.seed,
        faults=options.faults,
        again=options.again,
        quirks=options.quirks,
        latency=Latency(
            options.median, options.sigma, options.tail, options.tail_factor, options.fault_seconds
        ),
        retry_after_s=options.retry_after,
    )
    limits = Limits(options.concurrency_limit, options.requests_per_minute)
    endpoint = Endpoint(script, limits=limits, keep_requests=False)
    runner, base_url = await serve(endpoint, options.host, options.port)
    try:
        with setup_spared():  # its own pauses are not the client's
            print(base_url, flush=True)
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def parse_faults(text: str) -> dict[str, float]:
    """`none`, `stated`, or shares of first attempts: `throttle=0.08,transient=0.1`.

    Raises:
        argparse.ArgumentTypeError: an unknown class, or a share that is no number.
    """
    if text in ("none", "stated"):
        return dict(STATED_FAULTS) if text == "stated" else {}
    faults = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            faults[name] = float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r}: want CLASS=SHARE") from None
        if name not in FAULT_CLASSES:
            raise argparse.ArgumentTypeError(f"{name!r}: one of {', '.join(FAULT_CLASSES)}")
    return faults


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scripted_endpoint", description=__doc__
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=0, help="port to listen on; 0: a free one")
    add("--seed", type=int, default=0, help="another seed is another judge")
    add("--faults", type=parse_faults, default={}, help=parse_faults.__doc__.splitlines()[0])
    add("--again", type=float, default=0.25, help="factor on the shares from attempt to attempt")
    add("--quirks", type=float, default=0.1, help="share of fenced or wrongly summed answers")
    add("--retry-after", type=float, default=0.05, help="seconds that throttles ask for")
    add("--median", type=float, default=0.0, help="median seconds of an answer (log-normal)")
    add("--sigma", type=float, default=0.5, help="sigma of the logarithm of the seconds")
    add("--tail", type=float, default=0.0, help="share of answers from the slow tail")
    add("--tail-factor", type=float, default=5.0, help="how much slower the tail is")
    add("--fault-seconds", type=float, default=0.0, help="seconds of faults that make no tokens")
    add("--concurrency-limit", type=int, help="requests in flight before 429")
    add("--requests-per-minute", type=float, help="rate before 429")
    return parser


if __name__ == "__main__":
    sys.exit(main())
