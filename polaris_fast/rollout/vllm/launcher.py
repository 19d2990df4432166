"""Starts one vLLM server as a child process and stops it; touches no other process."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ...config import Config
from ..base import SamplingParams
from .errors import ServerError
from .logprobs import best_mode

_STOP_S = 15.0  # from the request to end until the process group is killed
_TAIL_LINES = 4
_MOST_TOKENS = 65_536  # that a CPU's server reads at once
_OF_THE_LAUNCHER = frozenset(
    {
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
        *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
        *("MASTER_ADDR", "MASTER_PORT"),
    }
)
_ERROR = re.compile(r"\b\w*(Error|Exception|error): ")  # the last line of a traceback


class LaunchedServer:
    """A server on loopback, its output in `log_path`. Runs from construction to `stop`."""

    def __init__(
        self,
        config: Config,
        model_path: str,
        *,
        text_only: bool,
        log_path: Path,
        backend: str,
        gpus: list[str],
    ) -> None:
        """
        Args:
            model_path: folder or hub id whose architecture and first weights it takes.
            text_only: of a model with vision, serve the text model alone.
            log_path: file for its output, made anew; that of a run before goes to `X.before.log`.
            backend: weight transfer: gloo, nccl or ipc.
            gpus: devices it may see, as in CUDA_VISIBLE_DEVICES; empty: all, or a CPU build.

        Raises:
            ServerError: vLLM is not installed.
        """
        require_vllm()
        port = _free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        self.log_path = log_path
        self._command = [
            *(sys.executable, "-P", "-m", "polaris_fast.rollout.vllm.serve", str(os.getpid())),
            *server_arguments(config, model_path, port, backend, text_only=text_only),
        ]
        self._environment = own_environment() | server_environment(config, backend, gpus)
        with suppress(FileNotFoundError):  # the last error may have told a person to read it
            log_path.replace(log_path.with_suffix(".before.log"))
        self._process = self._start()

    def restart(self) -> None:
        """End what is left of it and start it again, at the same address; its log goes on."""
        self.stop()
        self._process = self._start()

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone."""
        return self._process.poll() is not None

    def check_alive(self, grace_s: float = 0.0) -> None:
        """Raises ServerError, with the end of its log, when the process has ended.

        Args:
            grace_s: how long a process that is about to end may take.
        """
        try:
            status = self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            return
        cause = f"by signal {-status}" if status < 0 else f"with status {status}"
        words = "\n  ".join(last_words(self.log_path.read_text(errors="replace")))
        raise ServerError(
            f"rollout.vllm: the launched server {self.base_url} ended {cause}; its log "
            f"{self.log_path} says\n  {words}"
        )

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is the trainer's to answer
            )

    def ask_to_end(self) -> None:
        """Tell it to end, without waiting."""
        self._process.terminate()

    def stop(self) -> None:
        """End it and its workers; may be called twice."""
        self.ask_to_end()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        # The session is the server's own: whoever is left in it is one of its workers.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def visible_gpu(index: int) -> str:
    """Name of this process's device `index` for CUDA_VISIBLE_DEVICES of another process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",")[index].strip() if visible else str(index)


def own_environment() -> dict[str, str]:
    """The trainer's variables without its launcher's: a server is no rank of the run."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_THE_LAUNCHER and not name.startswith("TORCHELASTIC_")
    }


def last_words(log: str) -> list[str]:
    """The lines of a server's log that say why it ended: its last errors, else its last lines."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.search(line) and " WARNING " not in line]
    return (list(dict.fromkeys(errors)) or lines)[-_TAIL_LINES:]


def require_vllm() -> None:
    """Raises ServerError when vLLM cannot be imported; looks without importing it."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise ServerError(
            "rollout.vllm.launch: vLLM is not installed; pip install 'polaris-fast[train,vllm]' "
            "(for tests without a GPU: make test-vllm), or set rollout.engine to hf"
        )


def server_arguments(
    config: Config, model_path: str, port: int, backend: str, *, text_only: bool
) -> list[str]:
    """What vLLM is told; `rollout.vllm.extra_args` come last, so they win.

    Args:
        text_only: see `LaunchedServer`.
    """
    assert config.max_completion_length is not None
    vllm, longest_row = config.rollout.vllm, config.max_prompt_length + config.max_completion_length
    sampling = SamplingParams.from_config(config, frozenset())
    arguments = {
        "--model": model_path,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": config.dtype,
        "--max-model-len": str(longest_row),
        "--max-num-seqs": str(config.rollout.max_batch_size),
        "--tensor-parallel-size": str(vllm.tensor_parallel_size),
        "--logprobs-mode": best_mode(sampling),
        "--weight-transfer-config": json.dumps({"backend": backend}),
        "--generation-config": "vllm",  # no sampling defaults from the model's folder
    }
    if vllm.gpu_memory_utilization is not None:
        arguments["--gpu-memory-utilization"] = str(vllm.gpu_memory_utilization)
    flags = [
        "--skip-tokenizer-init",  # which vLLM's image processors cannot do without
        *(["--language-model-only"] if text_only else []),
        "--enable-scale-out",  # the routes for token ids
        "--disable-uvicorn-access-log",
    ]
    if vllm.placement == "colocated":
        flags += ["--enable-sleep-mode"]
    if backend == "gloo":
        # A prompt read in parts would rewind its row's random stream, which no CPU generator can.
        whole = max(2048, min(_MOST_TOKENS, config.rollout.max_batch_size * longest_row))
        flags += ["--enforce-eager", "--max-num-batched-tokens", str(whole)]
        if vllm.tensor_parallel_size == 1:
            flags += ["--distributed-executor-backend", "uni"]  # no process for a worker alone
    return [word for pair in arguments.items() for word in pair] + flags + list(vllm.extra_args)


def server_environment(config: Config, backend: str, gpus: list[str]) -> dict[str, str]:
    """Variables of the server's process besides the trainer's own."""
    variables = {
        "VLLM_SERVER_DEV_MODE": "1",  # the routes for trainers
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if backend == "ipc":
        variables["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # handles travel pickled
    if backend == "gloo":
        variables |= {
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(config.rollout.vllm.cpu_kv_cache_gib),
        }
    return variables


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
