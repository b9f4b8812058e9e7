"""The small Transformer: causal, equal with and without a cache, and as large as it says."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shipyard import models


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.CharTransformer(vocabulary=11, width=16, heads=2, layers=3).double().eval()


@pytest.fixture
def tokens():
    return torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))


def test_a_position_knows_nothing_of_what_comes_after_it(model, tokens):
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 1, 3, 1]])
def test_decoding_with_a_cache_equals_decoding_at_once(model, tokens, pieces):
    caches = model.new_caches()
    logits = [model(piece, caches) for piece in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(tokens))


def test_the_order_of_the_tokens_matters(model, tokens):
    swapped = tokens[:, [1, 0, *range(2, 9)]]
    assert (model(tokens)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-6


def test_a_block_is_torchs_encoder_layer_but_for_the_positions(model):
    """At position 0 the rotation is none, so one token gives exactly torch's block."""
    block = model.blocks[0]
    torchs = nn.TransformerEncoderLayer(
        16, 2, 64, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
    ).double()
    with torch.no_grad():
        torchs.self_attn.in_proj_weight.copy_(block.to_qkv.weight)
        torchs.self_attn.in_proj_bias.zero_()
        torchs.self_attn.out_proj.weight.copy_(block.to_out.weight)
        torchs.self_attn.out_proj.bias.zero_()
        for ours, theirs in (
            (block.norm_attention, torchs.norm1),
            (block.norm_mlp, torchs.norm2),
            (block.mlp[0], torchs.linear1),
            (block.mlp[2], torchs.linear2),
        ):
            theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 1, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x)[0], torchs.eval()(x))


def test_attention_maps_are_causal_and_add_up_to_one(model, tokens):
    maps = model.attention_maps(tokens)
    assert maps.shape == (3, 2, 2, 9, 9)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 2, 9, dtype=torch.float64))
    assert maps.triu(1).abs().max() == 0


def test_the_number_of_parameters_follows_the_formula(model):
    block = 3 * 16 * 16 + 16 * 16 + 2 * 4 * 16 * 16 + 4 * 16 + 16 + 2 * 2 * 16
    assert models.count_parameters(model) == 11 * 16 + 3 * block + 2 * 16


def test_a_new_model_is_as_good_as_guessing(tokens):
    torch.manual_seed(0)
    model = models.CharTransformer(vocabulary=11)
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(3, 1).flatten())
    assert abs(loss.item() - math.log(11)) < 0.2
