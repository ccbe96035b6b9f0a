"""Operations of a run: as PyTorch counts them, and as the reference has them for the article's network."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from electra_hf.model.configuration import ElectraPretrainingConfig
from electra_hf.model.flops import flops_per_token, train_flops
from electra_hf.model.objectives import OBJECTIVES


@pytest.mark.parametrize(
    ("objective", "embedding_size", "generator_only"),
    [
        *((objective, 8, False) for objective in OBJECTIVES),
        *(("electra", 16, False), ("electra", 8, True), ("electra", 16, True), ("all_tokens_mlm", 8, True)),
    ],
)
def test_the_count_is_what_pytorch_counts_in_a_step(tiny_model, rows, objective, embedding_size, generator_only):
    size = {"embedding_size": embedding_size}
    model = tiny_model(objective=objective, discriminator=size, generator=size)
    model.set_attn_implementation("eager")  # PyTorch counts no operation of the fused attention of a CPU
    model.generator_only = generator_only
    input_ids = rows(4)
    with FlopCounterMode(display=False) as counter:
        model(input_ids).loss.backward()
    expected = counter.get_total_flops() / input_ids.numel()
    assert flops_per_token(model.config, input_ids.shape[1], generator_only) == pytest.approx(expected, rel=0.01)


def test_the_article_s_network_costs_83_million_per_token():
    config = ElectraPretrainingConfig.from_size("small", generator={"num_hidden_layers": 3, "hidden_size": 256})
    assert flops_per_token(config, 128) == pytest.approx(83.5e6, rel=0.005)


def test_a_first_stage_of_the_generator_alone_costs_less(tiny_config):
    config = tiny_config()
    alone, both = flops_per_token(config, 16, generator_only=True), flops_per_token(config, 16)
    assert train_flops(config, 16, 1000, 0.25) == pytest.approx(250 * alone + 750 * both)
    assert train_flops(config, 16, 1000, 3.0) == pytest.approx(1000 * alone)
