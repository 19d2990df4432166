"""`python -m polaris_fast COMMAND`: the same as the `polaris` script."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
