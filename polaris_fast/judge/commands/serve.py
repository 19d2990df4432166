"""`serve`: the local heuristic judge as a server of its own."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from ...types import UserError
from ..local_server import serve_forever


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("serve", help="serve the local heuristic judge over HTTP")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0: a free one")
    parser.set_defaults(run=run, takes_settings=False)


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted. Raises UserError when the address cannot be had."""
    try:
        asyncio.run(serve_forever(options.host, options.port))
    except KeyboardInterrupt:
        return 0  # how a server is meant to end
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {options.host} --port {options.port}: cannot listen ({error}); choose another "
            "port, or 0 for a free one"
        ) from error
    return 0
