"""Which of Whisper's linear layers are packed for the CPU."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from gpu_worker.families.whisper import pack
from gpu_worker.linears.packed import PackedLinear


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_the_encoder_and_the_head_are_packed_and_the_decoders_small_layers_are_not() -> None:
    config = WhisperConfig(
        vocab_size=3000,
        d_model=384,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_source_positions=8,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=2,
    )
    model: Any = WhisperForConditionalGeneration(config).eval()
    pack(model)
    assert isinstance(model.model.encoder.layers[0].fc1, PackedLinear)
    assert isinstance(model.proj_out, PackedLinear)
    assert type(model.model.decoder.layers[0].fc1) is nn.Linear
