"""Layers on a CPU: the law and the gradient of dropout; attention and linear maps against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ElectraConfig, ElectraModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from electra_hf.model.cpu import Dropout, Linear, attend, drop_out, use_cpu_layers


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.001])
def test_as_many_are_dropped_as_asked_for_and_the_mean_stays(p):
    torch.manual_seed(0)
    calls, count = 2_000, 1_000
    outputs = torch.stack([drop_out(torch.ones(count), p) for _ in range(calls)])
    # A call rounds p to a multiple of 1/256 by chance, which adds at most (1/512)^2 to the variance of its share.
    deviation = ((p * (1 - p) / count + 512**-2) / calls) ** 0.5
    assert abs((outputs == 0).double().mean().item() - p) < 5 * deviation
    kept = outputs[outputs != 0]
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - p), rel=1e-6)


def test_neighbours_that_share_a_random_number_are_dropped_independently():
    torch.manual_seed(0)
    is_dropped = (drop_out(torch.ones(400_000), 0.5) == 0).view(-1, 8).float()
    correlations = torch.corrcoef(is_dropped.T) - torch.eye(8)
    assert correlations.abs().max() < 5 / 50_000**0.5


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7)])
def test_the_gradient_flows_where_the_value_did(shape):
    values = torch.randn(shape, requires_grad=True)
    output = drop_out(values, 0.5)
    output.sum().backward()
    assert output.shape == shape
    torch.testing.assert_close(output, values * values.grad)


def test_a_compiled_graph_drops_out_by_the_same_law_and_anew_at_every_call():
    def drop_twice(values):
        return drop_out(values, 0.3), drop_out(values, 0.3)

    torch.manual_seed(0)
    values = torch.ones(100_000, requires_grad=True)
    outputs = torch.compile(drop_twice, backend="aot_eager", fullgraph=True)(values)
    outputs[0].sum().backward()
    torch.testing.assert_close(values.grad, outputs[0].detach())
    first, second = (output == 0 for output in outputs)
    deviation = (0.3 * 0.7 / 100_000 + 512**-2) ** 0.5
    assert abs(first.double().mean() - 0.3) < 5 * deviation
    assert abs((first & second).double().mean() - 0.3**2) < 5 * deviation  # of two independent draws


def test_dropping_all_gives_zeros_and_dropping_none_or_evaluating_changes_nothing():
    values = torch.randn(8)
    assert torch.equal(drop_out(values, 1.0), torch.zeros(8))
    assert torch.equal(Dropout(0.0)(values), values)
    assert torch.equal(Dropout(0.5).eval()(values), values)


def test_the_same_seed_drops_the_same():
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(drop_out(torch.ones(100), 0.5))
    assert torch.equal(*draws)


@pytest.mark.parametrize("is_padded", [False, True])
def test_attention_equals_pytorchs_where_almost_nothing_is_dropped(is_padded):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 8).unbind()
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    if is_padded:
        mask[1, :, :, 4:] = False
    nothing = 1e-9  # goes the way of dropout, and drops nothing
    mine, _ = attend(nn.Module(), query, key, value, mask if is_padded else None, nothing, scaling=0.5)
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.5)
    torch.testing.assert_close(mine, theirs.transpose(1, 2))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_compiled_linear_map_equals_pytorchs(precision):
    def run(layer):
        values = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            output = torch.compile(layer, backend="aot_eager", fullgraph=True)(values)
        assert output.dtype == precision
        output.float().square().sum().backward()
        return output, values.grad, *[parameter.grad for parameter in layer.parameters()]

    torch.manual_seed(0)
    theirs, mine = nn.Linear(8, 4), Linear(8, 4)
    mine.load_state_dict(theirs.state_dict())
    tolerance = {} if precision == torch.float32 else {"rtol": 0.02, "atol": 0.02}  # theirs rounds once, mine twice
    for one, other in zip(run(mine), run(theirs), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def make_network(**kwargs):
    torch.manual_seed(0)
    config = ElectraConfig(
        **{"vocab_size": 40, "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "intermediate_size": 32, **kwargs},
    )
    return ElectraModel(config)


def test_a_network_keeps_its_outputs_in_evaluation_and_its_attention_if_another_was_chosen():
    ids = torch.randint(40, (3, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [7], [3]])).long()
    network = make_network().eval()
    before = network(ids, attention_mask=mask).last_hidden_state
    use_cpu_layers(network)
    torch.testing.assert_close(network(ids, attention_mask=mask).last_hidden_state, before)
    assert not [name for name, module in network.named_modules() if type(module) in (nn.Dropout, nn.Linear)]

    eager = make_network(attn_implementation="eager")
    use_cpu_layers(eager)
    assert eager.config._attn_implementation == "eager"


def test_padding_gets_no_attention_in_training():
    network = make_network(attention_probs_dropout_prob=1e-9, hidden_dropout_prob=0.0)
    use_cpu_layers(network)
    ids = torch.randint(40, (1, 12))
    short = network(ids[:, :7]).last_hidden_state
    padded = network(ids, attention_mask=(torch.arange(12)[None] < 7).long()).last_hidden_state
    torch.testing.assert_close(padded[:, :7], short)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_rows_without_padding_give_the_attention_no_mask(monkeypatch, is_compiled):
    masks = []

    def note(module, query, key, value, attention_mask, *args, **kwargs):
        masks.append(attention_mask)  # one that only says "everything" would cost a GPU its fastest kernel
        return sdpa_attention_forward(module, query, key, value, attention_mask, *args, **kwargs)

    monkeypatch.setattr("electra_hf.model.cpu.sdpa_attention_forward", note)
    network = make_network().eval()
    use_cpu_layers(network)
    run = torch.compile(network, backend="eager", fullgraph=True) if is_compiled else network
    run(torch.randint(40, (3, 12)))
    assert masks == [None, None]  # of two layers
