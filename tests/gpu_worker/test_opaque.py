"""What compiled code makes of operators that it does not look into."""

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from gpu_worker.compiled import compiled
from gpu_worker.opaque import operator


@operator("doubled(Tensor x) -> Tensor", torch.empty_like)
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_code_calls_the_function_itself_and_not_torchs_dispatcher() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = doubled(x + 1) - 1
        return result

    x = torch.randn(5)
    result, (source,) = run_and_get_code(compiled(function, {}), x)
    assert torch.equal(result, (x + 1) * 2 - 1)
    assert "extern_kernels.transformers_openai_api_doubled(" in source
    assert "= torch.ops.transformers_openai_api" not in source
