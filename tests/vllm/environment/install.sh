#!/usr/bin/env bash
# Real vLLM on a machine without a GPU, for the tests (Linux, x86-64, Python 3.11), in an
# environment of its own. With a GPU install the official one: pip install 'polaris-fast[train,vllm]'.
#
#   tests/vllm/environment/install.sh VENV
#
# Idempotent. Nothing is resolved: every version is pinned, vLLM's own wheel by hash, too.
set -euo pipefail
venv=${1:?usage: install.sh VENV}
here=$(cd "$(dirname "$0")" && pwd)

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -c 'import sys; sys.exit("Python 3.11 is needed, this is " + sys.version.split()[0] if sys.version_info[:2] != (3, 11) else 0)'
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps)

"${pip[@]}" --requirement "$here/locked.txt"
# Two of vLLM's requirements are left out, for audio and video; they have no CPU build.
"${pip[@]}" --require-hashes --requirement "$here/wheels.txt"
"$venv/bin/python" "$here/declare_torchvision_ops.py"
# The project brings vLLM its `gloo` weight transfer, by an entry point.
"${pip[@]}" --no-build-isolation --editable "$here/../../.."
"$venv/bin/python" -c 'import torch, transformers, vllm; print("vllm", vllm.__version__, "torch", torch.__version__, "transformers", transformers.__version__)'
