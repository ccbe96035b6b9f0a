import pytest
from transformers import ElectraConfig, ElectraForTokenClassification

from electra_hf.errors import InputError
from electra_hf.tasks.finetuning import layerwise_parameter_groups


@pytest.fixture(scope="module")
def model():
    config = ElectraConfig(
        vocab_size=20,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
    )
    return ElectraForTokenClassification(config)


def learning_rates(model, **kwargs):
    """Learning rate by parameter name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = layerwise_parameter_groups(model, learning_rate=1.0, **kwargs)
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize(
    ("name", "learning_rate"),
    [
        ("classifier.weight", 1.0),
        ("electra.encoder.layer.1.attention.self.query.weight", 0.5),
        ("electra.encoder.layer.0.output.dense.bias", 0.25),
        ("electra.embeddings.word_embeddings.weight", 0.125),
        ("electra.embeddings.LayerNorm.weight", 0.125),
        ("electra.embeddings_project.weight", 0.125),
    ],
)
def test_each_layer_learns_at_decay_times_the_one_above(model, name, learning_rate):
    assert learning_rates(model, decay=0.5)[name] == learning_rate


@pytest.mark.parametrize(
    ("name", "learning_rate"),
    [
        ("classifier.weight", 1.0),
        ("electra.encoder.layer.1.attention.self.query.weight", 0.25),
        ("electra.encoder.layer.0.output.dense.bias", 0.125),
        ("electra.embeddings.word_embeddings.weight", 0.0625),
    ],
)
def test_the_published_form_is_one_factor_lower_below_the_head(model, name, learning_rate):
    assert learning_rates(model, decay=0.5, published_decay=True)[name] == learning_rate


def test_every_parameter_is_in_exactly_one_group(model):
    groups = layerwise_parameter_groups(model, learning_rate=1.0, decay=0.8)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_weight_decay_spares_biases_and_layer_norms_alone(model):
    groups = layerwise_parameter_groups(model, learning_rate=1.0, decay=0.8, weight_decay=0.01)
    decayed = {id(parameter) for group in groups if group["weight_decay"] == 0.01 for parameter in group["params"]}
    spared = {id(parameter) for group in groups if group["weight_decay"] == 0.0 for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert id(parameter) in (spared if name.endswith("bias") or "LayerNorm" in name else decayed), name


def test_the_first_group_is_the_heads_because_its_learning_rate_is_what_gets_logged(model):
    assert layerwise_parameter_groups(model, learning_rate=3e-4, decay=0.8)[0]["lr"] == 3e-4


def test_frozen_parameters_are_left_out(model):
    embedding = model.electra.embeddings.word_embeddings.weight
    embedding.requires_grad_(False)
    try:
        assert "electra.embeddings.word_embeddings.weight" not in learning_rates(model, decay=0.8)
    finally:
        embedding.requires_grad_(True)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1])
def test_a_decay_that_is_no_factor_is_refused(model, decay):
    with pytest.raises(InputError, match="layerwise_lr_decay"):
        layerwise_parameter_groups(model, learning_rate=1.0, decay=decay)
