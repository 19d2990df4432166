"""The CUDA kernels compile for every architecture without spills, fit the chip, and their C
functions refuse what no kernel takes before anything reaches a device. No GPU is needed."""

import ctypes
import re
import subprocess
from typing import Any

import pytest
import torch

from polaris_kernels.backends import cuda_library
from polaris_kernels.backends.cuda_library import CudaLibrary, Logits, Out, Rule, State
from polaris_kernels.backends.resources import cuobjdump

from .cuda_emulator import CSRC, csrc_build

# kernel instances: 2 types x 2 for the statistics, 3 pairs of types x 2 for each of the others
NUM_KERNELS = 4 + 6 + 6
OK, BAD, UNALIGNED = 0, 1, 2
KIB = 1024


@pytest.fixture(scope="module")
def build():
    module = csrc_build()
    try:
        module.find_nvcc()
    except module.BuildError as error:
        pytest.skip(str(error))
    return module


@pytest.fixture(scope="module")
def library(build, tmp_path_factory):
    newest = max(path.stat().st_mtime for path in (CSRC / "cuda").iterdir())
    if cuda_library.PATH.exists() and cuda_library.PATH.stat().st_mtime > newest:
        return CudaLibrary()
    return CudaLibrary(build.build_cuda(tmp_path_factory.mktemp("cuda") / build.CUDA_LIBRARY))


@pytest.mark.parametrize("is_there", [False, True])
def test_a_missing_cuda_library_is_an_error_where_it_is_asked_for(monkeypatch, tmp_path, is_there):
    module = csrc_build()

    def refuse(target):
        raise module.BuildError("no nvcc found")

    monkeypatch.setattr(module, "build", lambda target: target)
    monkeypatch.setattr(module, "build_cuda", refuse)
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    if is_there:
        (tmp_path / module.CUDA_LIBRARY).touch()
    for arguments, status in (([], 0), (["--require-cuda"], 0 if is_there else 1)):
        monkeypatch.setattr("sys.argv", ["build.py", *arguments])
        assert module.main() == status


@pytest.mark.parametrize("arch", ["80", "90a"])
def test_the_compiler_reports_no_spills_and_no_local_memory(build, tmp_path, arch):
    command = [
        *build.find_nvcc(), "-std=c++17", "-O3", "-Xptxas", "-v", "-cubin",
        "-gencode", f"arch=compute_{arch},code=sm_{arch}",
        str(CSRC / "cuda" / "library.cu"), "-o", str(tmp_path / "kernels.cubin"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = re.findall(r"Compiling entry function '(\S+)'", done.stderr)
    assert len(set(kernels)) == NUM_KERNELS
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill \w+, (\d+) bytes", done.stderr)
    assert len(stacks) == NUM_KERNELS and set(stacks) == {("0", "0", "0")}
    # three blocks of 256 threads fit the register file of a multiprocessor, or two of 512 with 64
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(registers) == NUM_KERNELS and max(registers) <= 80
    assert "warning" not in done.stderr
    check_instructions(tmp_path / "kernels.cubin", arch)


def check_instructions(cubin, arch: str) -> None:
    """16 bytes an access, asynchronous copies, and no local memory in what the chip executes."""
    pytest.importorskip("triton", reason="its cuobjdump reads the machine code")
    command = [str(cuobjdump()), "-sass", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bodies = dict(re.findall(r"Function : (\S+)(.*?)(?=Function :|\Z)", text, re.DOTALL))
    assert len(bodies) == NUM_KERNELS
    for name, code in bodies.items():
        assert "LDL" not in code and "STL" not in code, name
        if "row_pass" in name:
            assert re.search(r"LDGSTS\S*\.128", code) and re.search(r"LDS\S*\.128", code), name
            # a barrier of the cluster, and its blocks' shared memory, from Hopper on
            assert ("UCGABAR" in code) == (arch == "90a"), name
        else:
            assert re.search(r"LDG\S*\.128", code), name
        if "Li0ELi1E" in name:
            assert re.search(r"STG\S*\.64", code), name
        elif "statistics" not in name:
            assert re.search(r"STG\S*\.128", code), name


@pytest.mark.parametrize(
    ("width", "dtype", "capability", "kib", "expected"),
    [
        (248_320, torch.bfloat16, 90, 227, 8),
        (248_320, torch.float32, 90, 227, 8),
        (151_936, torch.bfloat16, 90, 227, 4),
        (151_936, torch.float32, 90, 227, 8),
        (32_768, torch.bfloat16, 90, 227, 1),
        (32_768, torch.bfloat16, 80, 163, 1),
        (248_320, torch.bfloat16, 80, 163, 0),
        (248_320, torch.bfloat16, 89, 99, 0),
        (1_000_000, torch.bfloat16, 90, 227, 0),
        (1_000, torch.bfloat16, 75, 64, 0),
    ],
)
def test_blocks_that_share_a_row(library, width, dtype, capability, kib, expected):
    limit = kib * KIB
    cluster = library.cluster_size(width, dtype, capability, limit)
    assert cluster == expected
    if cluster:
        share = library.shared_bytes(width, dtype, cluster)
        assert width * dtype.itemsize <= (share - 400) * cluster and share <= limit
        # but for the widest fp32 rows, three blocks a multiprocessor of Hopper
        if capability == 90 and width * dtype.itemsize <= 8 * 74 * KIB:
            assert 3 * (share + KIB) <= 228 * KIB


def structures() -> dict[str, Any]:
    """Arguments that pass every check; the addresses are never read without rows."""
    vector, address = 1 << 12, 1 << 20
    return {
        "logits": Logits(
            logits=address, row_stride=1_008, num_rows=0, num_columns=1_003, targets=vector,
            scale_all=1.0, dtype=1,
        ),
        "state": State(vector, vector, vector, vector, vector),
        "rule": Rule(g_logp=vector, ratio_cap=float("inf")),
        "out": Out(out=address, row_stride=1_008, dtype=1),
    }  # fmt: skip


def call(library: CudaLibrary, given: dict[str, Any], cluster: int = 0) -> list[int]:
    """Status of the three functions."""
    parts = [None if x is None else ctypes.byref(x) for x in given.values()]
    c = library._library
    return [
        c.pkc_statistics(parts[0], parts[1], None),
        c.pkc_gradient(*parts, None),
        c.pkc_row_pass(*parts, ctypes.c_int32(cluster), None),
    ]


def test_no_rows_are_no_work(library):
    assert call(library, structures()) == [OK, OK, OK]


@pytest.mark.parametrize(
    ("part", "field", "value", "expected"),
    [
        ("logits", "num_columns", 0, [BAD] * 3),
        ("logits", "num_columns", 2**31, [BAD] * 3),
        ("logits", "num_rows", -1, [BAD] * 3),
        ("logits", "num_rows", 2**31, [BAD] * 3),
        ("logits", "dtype", 2, [BAD] * 3),
        ("logits", "row_stride", 1_000, [BAD] * 3),
        ("logits", "logits", 0, [BAD] * 3),
        ("logits", "targets", 0, [BAD] * 3),
        ("state", "shift", 0, [BAD] * 3),
        ("logits", "logits", (1 << 20) + 2, [UNALIGNED] * 3),
        ("logits", "row_stride", 1_004, [UNALIGNED] * 3),
        ("out", "out", 0, [None, BAD, BAD]),
        ("out", "row_stride", 1_000, [None, BAD, BAD]),
        ("out", "row_stride", 1_004, [None, UNALIGNED, UNALIGNED]),
        ("out", "dtype", 0, [None, BAD, BAD]),
        ("out", "num_listed", -1, [None, BAD, BAD]),
        ("rule", "advantages", 4096, [None, BAD, BAD]),
        ("rule", "kl", 4, [None, BAD, BAD]),
        ("rule", "kl", 5, [None, BAD, BAD]),
        ("logits", None, None, [BAD] * 3),
        ("state", None, None, [BAD] * 3),
        ("rule", None, None, [None, BAD, BAD]),
        ("out", None, None, [None, BAD, BAD]),
    ],
)
def test_bad_arguments_are_refused_before_a_launch(library, part, field, value, expected):
    if torch.cuda.is_available() and None in expected:
        pytest.skip("the statistics would be launched on addresses that are none")
    given = structures()
    given["logits"].num_rows = 2
    if field is None:
        given[part] = None
    else:
        setattr(given[part], field, value)
    for status, wanted in zip(call(library, given), expected, strict=True):
        assert wanted is None or status == wanted


@pytest.mark.parametrize("cluster", [-2, 3, 17, 32])
def test_odd_clusters_are_refused(library, cluster):
    assert call(library, structures(), cluster)[2] == BAD


def test_an_index_has_no_one_read_form(library):
    given = structures()
    given["out"].index = 4096
    assert call(library, given)[1:] == [OK, BAD]


def test_a_machine_without_a_driver_says_so(library):
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    given = structures()
    given["logits"].num_rows = 2
    assert call(library, given) == [4, 4, 4]
    library._library.pkc_last_error.restype = ctypes.c_char_p
    assert b"CUDA driver" in library._library.pkc_last_error()
