"""Who holds a cache: the model, from `bind` to the next one or to `unbind`."""

import weakref

import torch

from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.kv_cache import KVGeometry, LayerGeometry
from gpu_worker.paged_attention import bind, unbind
from tests.builders import make_model

GEOMETRY = KVGeometry((LayerGeometry(2, 16, 16),), torch.float32, torch.device("cpu"))


def test_a_cache_is_free_memory_as_soon_as_the_model_lets_go_of_it() -> None:
    model = make_model("llama", num_hidden_layers=1)
    backend = TorchAttention(GEOMETRY, 1)
    cache = weakref.ref(backend)
    bind(model, backend)
    del backend
    assert cache() is not None, "the model attends through it"
    unbind(model)
    assert cache() is None
    unbind(model)  # of what is not bound
