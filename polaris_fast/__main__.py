"""`python -m polaris_fast COMMAND`: the same as the `polaris` script."""

from .cli import main
from .leaving import leave


def run() -> None:
    """The `polaris` script."""
    leave(main())


if __name__ == "__main__":
    run()
