import pytest

from electra_hf.errors import InputError
from electra_hf.model.configuration import ElectraPretrainingConfig


def from_size(size="small", **kwargs):
    return ElectraPretrainingConfig.from_size(size, **kwargs)


def shape(config):
    names = ("embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return tuple(getattr(config, name) for name in names)


@pytest.mark.parametrize(
    ("size", "discriminator", "generator", "mask_probability"),
    [  # paper, table 6
        ("small", (128, 256, 12, 4, 1024), (128, 64, 12, 1, 256), 0.15),
        ("base", (768, 768, 12, 12, 3072), (768, 256, 12, 4, 1024), 0.15),
        ("large", (1024, 1024, 24, 16, 4096), (1024, 256, 24, 4, 1024), 0.25),
    ],
)
def test_the_sizes_are_those_of_the_paper(size, discriminator, generator, mask_probability):
    config = from_size(size)
    assert shape(config.discriminator_config) == discriminator
    assert shape(config.generator_config) == generator
    assert config.mask_probability == mask_probability


def test_rule_13_the_generator_of_the_article_is_full_width_and_three_layers():
    config = from_size(generator={"num_hidden_layers": 3, "hidden_size": 256})
    assert shape(config.generator_config) == (128, 256, 3, 4, 1024)


def test_rule_3_a_row_of_128_selects_19_positions():
    assert from_size().num_selected(128) == 19


def test_rule_10_the_discriminator_weighs_50_times_the_generator():
    config = from_size()
    assert (config.generator_weight, config.discriminator_weight) == (1.0, 50.0)


def test_shared_tables_of_the_generator_follow_the_discriminator():
    config = from_size(vocab_size=1000, discriminator={"max_position_embeddings": 64, "embedding_size": 32})
    assert config.generator_config.max_position_embeddings == 64
    assert config.generator_config.embedding_size == 32
    assert config.generator_config.vocab_size == 1000


def test_a_saved_configuration_comes_back_the_same(tmp_path):
    config = from_size(generator={"num_hidden_layers": 3}, mask_token_id=103, special_token_ids=[0, 101, 102, 103])
    config.save_pretrained(tmp_path)
    again = ElectraPretrainingConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.generator_config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "tiny"}, "model_size: expected one of small, base, large"),
        ({"objective": "gan"}, "objective: expected one of electra"),
        ({"embedding_sharing": "some"}, "embedding_sharing: expected one of shared"),
        ({"mask_probability": 1.5}, "mask_probability: expected a share"),
        ({"generator": {"embedding_size": 64}}, "embedding_size: the generator has 64 and the discriminator 128"),
        ({"discriminator": {"hiden_size": 64}}, "discriminator: 'hiden_size' is not a field"),
        ({"discriminator": {"hidden_size": 200}}, "hidden_size 200 is not a multiple of its 3 attention heads"),
        ({"generator": {"num_hidden_layers": "three"}}, "generator: .*num_hidden_layers.*expected int"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(InputError, match=message):
        from_size(**settings)
