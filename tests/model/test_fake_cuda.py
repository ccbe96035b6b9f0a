"""What of a training step can be seen to be right for a GPU without one (see `step_on_fake_cuda.py`)."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from electra_hf.model.objectives import OBJECTIVES
from electra_hf.model.sharing import EMBEDDING_SHARINGS

TESTS = Path(__file__).parents[1]
# Of the list of `torch.use_deterministic_algorithms`, what a language model could come to use: it raises on CUDA.
# (`cumsum` raises for floating-point numbers alone, and is looked at by itself.)
NOT_DETERMINISTIC = {
    "histc",
    "bincount",
    "put_",
    "median",
    "nanmedian",
    "kthvalue",
    "nll_loss2d_forward",
    "scatter_reduce",
}
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2"}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A training step of every pair on fake CUDA tensors: (settings, what was seen)."""
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("a C++ compiler makes the fake device, and there is none")
    torch = Path(importlib.util.find_spec("torch").origin).parent
    library = tmp_path_factory.mktemp("fake_cuda") / "libfakecuda.so"
    flags = ["-std=c++20", "-shared", "-fPIC", f"-I{torch}/include"]
    links = [f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"]
    build = [compiler, *flags, str(TESTS / "fake_cuda.cpp"), "-o", str(library), *links]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"the fake device cannot be compiled here: {built.stderr[:300]}")
    command = [sys.executable, str(TESTS / "step_on_fake_cuda.py"), str(library)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.slow
def test_every_pair_takes_a_step_on_cuda_that_waits_for_nothing_and_touches_no_tensor_of_the_cpu(steps):
    pairs = {(case["objective"], case.get("embedding_sharing"), case["precision"]) for case, _ in steps}
    assert {objective for objective, *_ in pairs} == set(OBJECTIVES)
    assert {
        ("electra", sharing, precision) for sharing in EMBEDDING_SHARINGS for precision in ("fp32", "bf16", "fp16")
    } <= pairs
    for case, seen in steps:  # what waits has raised already; these have a fake value of their own
        assert seen["on the CPU"] == [] and not WAITING & set(seen["names"]), case
        assert seen["operations"] > 1000 and "_fused_adamw_" in seen["names"], case
        if case["precision"] == "fp16":
            assert "_amp_update_scale_" in seen["names"], case


@pytest.mark.slow
def test_no_operation_of_a_step_is_one_that_full_determinism_forbids_on_cuda(steps):
    for case, seen in steps:
        assert seen["sums of floats"] == [] and not NOT_DETERMINISTIC & set(seen["names"]), case
        assert ("exponential_" in seen["names"]) == OBJECTIVES[case["objective"]].has_generator, case


@pytest.mark.slow
def test_attention_gets_no_mask_on_packed_rows_so_that_cuda_may_choose_its_fastest_kernel(steps):
    for case, seen in steps:
        has_mask, is_causal = case.get("with_mask", False), False
        assert seen["attention"] == [[has_mask, is_causal]] * seen["layers"], case
