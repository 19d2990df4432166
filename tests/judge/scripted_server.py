"""The scripted endpoint under its old name."""

from benchmarks.scripted_endpoint import *  # noqa: F403
