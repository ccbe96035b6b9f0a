"""What generator and discriminator share, and what a gradient reaches."""

import pytest
import torch

from electra_hf.errors import InputError
from electra_hf.model.building import start_positions_as_sinusoids
from electra_hf.model.modeling import ElectraForPretraining
from electra_hf.model.sharing import TABLES, ResidualEmbedding


def embeddings(network):
    return dict(network.electra.embeddings.named_parameters())


@pytest.mark.parametrize(
    ("sharing", "shared"),
    [
        (
            "shared",
            "word_embeddings.weight position_embeddings.weight token_type_embeddings.weight LayerNorm.weight "
            "LayerNorm.bias",
        ),
        ("word", "word_embeddings.weight"),
        ("none", ""),
        ("gradient_disentangled", ""),
    ],
)
def test_exactly_these_parameters_are_one_and_the_same(tiny_model, sharing, shared):
    model = tiny_model(embedding_sharing=sharing)
    generator, discriminator = embeddings(model.generator), embeddings(model.discriminator)
    assert {name for name in generator if generator[name] is discriminator[name]} == set(shared.split())
    assert model.generator.generator_lm_head.weight is generator["word_embeddings.weight"]


def test_residuals_start_at_zero_and_give_the_generator_no_gradient(tiny_model, rows):
    model = tiny_model(embedding_sharing="gradient_disentangled")
    own = embeddings(model.discriminator)
    assert all((own[f"{table}.weight"] == 0).all() for table in TABLES)
    (word_gradient,) = torch.autograd.grad(
        model(rows(2)).discriminator_loss, model.generator.get_input_embeddings().weight, allow_unused=True
    )
    assert word_gradient is None
    model(rows(2)).discriminator_loss.backward()
    assert own["word_embeddings.weight"].grad.abs().sum() > 0


def test_the_discriminator_reads_the_sum_of_table_and_residual(tiny_model, rows):
    model = tiny_model(embedding_sharing="gradient_disentangled")
    embedding, ids = model.discriminator.get_input_embeddings(), rows(1)
    assert isinstance(embedding, ResidualEmbedding)
    with torch.no_grad():
        embedding.weight.fill_(0.5)
    torch.testing.assert_close(embedding(ids), model.generator.get_input_embeddings()(ids) + 0.5)


def test_the_head_of_a_token_objective_uses_the_sum_too(tiny_model):
    model = tiny_model(objective="replace_mlm", embedding_sharing="gradient_disentangled")
    head = model.discriminator.generator_lm_head
    assert head.weight is model.discriminator.get_input_embeddings().weight
    hidden = torch.randn(3, 8)
    table = model.generator.get_input_embeddings().weight  # the residual is zero
    torch.testing.assert_close(head(hidden), hidden @ table.T)


@pytest.mark.parametrize("sharing", ["none", "word"])
def test_networks_of_different_position_tables_go_together(tiny_model, rows, sharing):
    model = tiny_model(embedding_sharing=sharing, generator={"max_position_embeddings": 64})
    assert torch.isfinite(model(rows(2)).loss)


def test_without_sharing_even_the_width_of_the_embeddings_may_differ(tiny_model, rows):
    model = tiny_model(embedding_sharing="none", generator={"embedding_size": 4})
    assert torch.isfinite(model(rows(2)).loss)


@pytest.mark.parametrize("sharing", ["shared", "word", "gradient_disentangled"])
def test_embeddings_of_different_width_cannot_be_shared(tiny_config, sharing):
    with pytest.raises(InputError, match="embedding_size: the generator has 4 and the discriminator 8.*none"):
        tiny_config(embedding_sharing=sharing, generator={"embedding_size": 4})


def test_published_networks_become_a_table_and_the_difference_to_it(tiny_model, rows, tmp_path):
    model, ids = tiny_model(embedding_sharing="none"), rows(2)
    model.save_discriminator(tmp_path / "discriminator")
    model.save_generator(tmp_path / "generator")
    folders = tmp_path / "discriminator", tmp_path / "generator"
    again = ElectraForPretraining.from_published(*folders, embedding_sharing="gradient_disentangled")
    torch.testing.assert_close(again.discriminator(ids).logits, model.discriminator(ids).logits)
    torch.testing.assert_close(again.generator(ids).logits, model.generator(ids).logits)


def test_a_discriminator_that_starts_from_the_generator_keeps_its_residuals_at_zero(tiny_model, rows):
    same_width = {"hidden_size": 16, "num_attention_heads": 2}
    model = tiny_model(embedding_sharing="gradient_disentangled", generator=same_width)
    model.initialize_discriminator()
    assert (embeddings(model.discriminator)["word_embeddings.weight"] == 0).all()
    ids = rows(2)
    torch.testing.assert_close(model.discriminator.electra.embeddings(ids), model.generator.electra.embeddings(ids))


def test_a_sinusoidal_start_of_a_residual_is_left_to_the_generator(tiny_model):
    model = tiny_model(embedding_sharing="gradient_disentangled")
    start_positions_as_sinusoids(model.discriminator.electra.embeddings)
    assert (embeddings(model.discriminator)["position_embeddings.weight"] == 0).all()
