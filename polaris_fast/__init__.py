"""polaris_fast: fast GRPO training of long-form writers (POLARIS, arXiv 2606.04095)."""

__version__ = "0.1.0"
