"""The kernels compile for Hopper: the interpreter takes much that the compiler does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parents[3]
# In a process of its own, because this one may have told Triton to interpret.
SCRIPT = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gpu_worker.linears import triton_int4_kernels as kernels

TYPES = {
    "halves": "*u8", "scales": "*fp16", "zeros": "*fp16", "partial": "*fp32",
    "x": "*bf16", "y": "*bf16", "bias": "*bf16", "weight": "*bf16",
}

def assembly(kernel, **constants):
    names = kernel.arg_names
    kinds = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
               if n not in constants and n not in ("num_rows", "share")}
    source = ASTSource(kernel, kinds, places, aligned)
    options = {"num_warps": 4, "num_stages": 4}
    return triton.compile(source, GPUTarget("cuda", 90, 32), options).asm["ptx"]

print(json.dumps([
    assembly(kernels.product_kernel, ROWS=16, OUTPUTS=64),
    assembly(kernels.product_kernel, ROWS=64, OUTPUTS=64),
    assembly(kernels.sum_kernel, SHARES=9, HAS_BIAS=True, TILE=512),
    assembly(kernels.dense_kernel, UNITS=64),
]))
"""


def test_the_kernels_compile_and_use_the_matrix_units(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    few, many, _, _ = json.loads(done.stdout)
    assert "mma.sync" in few
    assert "wgmma" in many
    assert "cp.async" in few  # weights are fetched while others are multiplied
