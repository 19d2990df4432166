"""The policy model: loading, exact packed forward, and the probe that proves it exact.

Import the submodule you need; importing this package loads neither torch nor transformers.
"""
