"""Continuing a published discriminator: with its generator, or with a new one that learns alone first."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForTokenClassification,
    ElectraModel,
    TrainerCallback,
)

from electra_hf import ElectraForPretraining, ElectraPretrainingConfig
from electra_hf.errors import InputError
from electra_hf.model.sharing import EMBEDDING_SHARINGS, add_residuals
from electra_hf.training.arguments import ModelArguments

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "embedding_size": 8, "vocab_size": 40}
SMALL |= {"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.2}
SMALL |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def published(tmp_path):
    """Saves a network of random weights with the class given, as Hugging Face's own code does; its folder."""

    def save(network_class=ElectraForPreTraining, **fields):
        torch.manual_seed(1)
        folder = tmp_path / network_class.__name__
        network_class(ElectraConfig(**SMALL | fields)).save_pretrained(folder)
        return folder

    return save


def plain(pair):
    """The weights that the discriminator computes with, as a copy."""
    state = add_residuals(pair.discriminator)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def assert_equal(state, other):
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("sharing", EMBEDDING_SHARINGS)
def test_a_lone_discriminator_starts_bit_for_bit_with_a_new_generator_on_its_embeddings(published, rows, sharing):
    folder = published()
    pair = ElectraForPretraining.from_published(folder, embedding_sharing=sharing)
    original = ElectraForPreTraining.from_pretrained(folder)
    assert_equal(plain(pair), original.state_dict())
    words = pair.generator.get_input_embeddings().weight
    assert torch.equal(words, original.get_input_embeddings().weight)
    assert pair.generator.config.hidden_size == 4 and pair.generator.config.num_hidden_layers == 2
    assert torch.isfinite(pair(rows(2)).loss)


@pytest.mark.parametrize("sharing", EMBEDDING_SHARINGS)
@pytest.mark.parametrize("generator", ["new", "published"])
def test_a_generator_that_learns_alone_leaves_the_published_discriminator_as_it_is(
    make_trainer, published, sharing, generator
):
    generators = {"new": None, "published": generator == "published" and published(ElectraForMaskedLM)}
    folder = published()
    pair = ElectraForPretraining.from_published(folder, generators[generator], embedding_sharing=sharing)
    before = [parameter.detach().clone() for parameter in pair.generator.electra.encoder.parameters()]
    trainer = make_trainer(pair, max_steps=6, generator_only_steps=4, learning_rate=0.01)
    at_the_switch = {}

    class AtTheSwitch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                at_the_switch.update(plain(pair))

    trainer.add_callback(AtTheSwitch())
    trainer.train()
    assert_equal(at_the_switch, ElectraForPreTraining.from_pretrained(folder).state_dict())
    after = list(pair.generator.electra.encoder.parameters())
    assert not any(torch.equal(*pair_of_weights) for pair_of_weights in zip(before, after, strict=True))
    assert not torch.equal(
        plain(pair)["discriminator_predictions.dense.weight"], at_the_switch["discriminator_predictions.dense.weight"]
    )


@pytest.mark.parametrize("schedule", ["linear", "constant_with_warmup", "cosine"])
@pytest.mark.parametrize("asked", [None, 0, 2, 6])
@pytest.mark.parametrize("is_published", [True, False])
def test_the_rate_warms_up_once_more_when_the_discriminator_begins_to_learn(
    make_trainer, published, tiny_model, schedule, asked, is_published
):
    pair = ElectraForPretraining.from_published(published()) if is_published else tiny_model()
    second = (4 if is_published else 0) if asked is None else asked
    settings = {"max_steps": 20, "warmup_steps": 4, "generator_only_steps": 8, "lr_scheduler_type": schedule}
    trainer = make_trainer(pair, logging_steps=1, learning_rate=1.0, discriminator_warmup_steps=asked, **settings)
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(20)
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    # The schedule without a second warm-up, of a pair that nobody has published.
    untouched = make_trainer(logging_steps=1, learning_rate=1.0, folder="other", **settings)
    untouched.create_optimizer()
    usual = untouched.create_scheduler(20)
    for step, rate in enumerate(rates):
        expected = usual.get_last_lr()[0] * (min(1, (step - 8 + 1) / second) if second and step >= 8 else 1)
        assert rate == pytest.approx(expected), step
        usual.optimizer.step()
        usual.step()


@pytest.mark.parametrize(
    ("max_steps", "asked", "steps"),
    [(40, None, 20), (1_500, None, 750), (5_000, None, 1_000), (30_000, None, 3_000), (40, 0, 0), (40, 5, 5)],
)
def test_a_new_generator_learns_alone_for_a_tenth_of_the_run_or_1000_steps_unless_told_otherwise(
    make_trainer, published, max_steps, asked, steps
):
    pair = ElectraForPretraining.from_published(published())
    trainer = make_trainer(pair, max_steps=max_steps, warmup_steps=2, generator_only_steps=asked)
    assert trainer.args.generator_only_steps == steps


def test_with_both_networks_published_neither_learns_alone_unless_asked(make_trainer, published):
    folder = published()
    both = ElectraForPretraining.from_published(folder, published(ElectraForMaskedLM))
    assert make_trainer(both, max_steps=40, warmup_steps=2).args.generator_only_steps == 0


def test_stopped_around_the_switch_it_goes_on_as_if_it_had_not_stopped(make_trainer, published):
    folder = published(hidden_dropout_prob=0.1)

    def trainer(name):
        pair = ElectraForPretraining.from_published(folder)
        return make_trainer(
            pair, max_steps=6, save_steps=1, save_total_limit=None, generator_only_steps=3, folder=name
        )

    whole = trainer("whole")
    whole.train()
    for step in (2, 3, 4):
        again = trainer("whole")
        again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
        assert_equal(dict(again.model.state_dict()), dict(whole.model.state_dict()))


@pytest.mark.parametrize(
    ("hidden_size", "layers", "width", "mask"), [(256, 12, 64, 0.15), (768, 12, 256, 0.15), (1024, 24, 256, 0.25)]
)
def test_the_new_generator_has_the_width_of_the_paper(tmp_path, hidden_size, layers, width, mask):
    embedding_size = 128 if hidden_size == 256 else hidden_size
    fields = {"hidden_size": hidden_size, "num_hidden_layers": layers, "embedding_size": embedding_size}
    config = ElectraConfig(**fields, num_attention_heads=hidden_size // 64, intermediate_size=4 * hidden_size)
    config.architectures = ["ElectraForPreTraining"]
    config.save_pretrained(tmp_path)
    pair = ElectraForPretraining.published_config(tmp_path)
    assert pair.generator_config.hidden_size == width and pair.generator_config.num_hidden_layers == layers
    assert pair.generator_config.num_attention_heads == width // 64
    assert pair.generator_config.intermediate_size == 4 * width
    assert pair.mask_probability == mask
    of_that_size = ElectraPretrainingConfig.from_size({64: "small", 256: "base"}[width], config.vocab_size)
    if hidden_size < 1024:
        assert pair.generator_config.to_diff_dict() == of_that_size.generator_config.to_diff_dict()


def test_fields_of_the_new_generator_can_be_chosen(published):
    pair = ElectraForPretraining.from_published(published(), new_generator={"num_hidden_layers": 1})
    assert len(pair.generator.electra.encoder.layer) == 1
    with pytest.raises(InputError, match="generator: 'layers' is not a field"):
        ElectraForPretraining.published_config(published(), new_generator={"layers": 1})
    with pytest.raises(InputError, match="embedding_size: the generator has 4 and the discriminator 8"):
        ElectraForPretraining.published_config(published(), new_generator={"embedding_size": 4})


def bert(folder):
    config = BertConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, vocab_size=40)
    BertForMaskedLM(config).save_pretrained(folder)


def electra(network_class):
    return lambda folder: network_class(ElectraConfig(**SMALL)).save_pretrained(folder)


def electra_without_a_word_on_its_class(folder):
    electra(ElectraForMaskedLM)(folder)
    config = ElectraConfig.from_pretrained(folder)
    config.architectures = None
    config.save_pretrained(folder)


def whole_pair(folder):
    ElectraForPretraining(
        ElectraPretrainingConfig.from_size("small", 40, discriminator=SMALL, generator=SMALL)
    ).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bert, "is no ELECTRA, its config.json says model_type: bert"),
        (whole_pair, "is a pair of generator and discriminator"),
        (electra(ElectraForMaskedLM), "is not a discriminator .* architectures: ElectraForMaskedLM"),
        (electra(ElectraForTokenClassification), "is not a discriminator .* ElectraForTokenClassification"),
        (electra(ElectraModel), "is not a discriminator .* ElectraModel"),
        (electra_without_a_word_on_its_class, "is not a discriminator .* lacks 4 weights, discriminator_predictions"),
        (lambda folder: folder.mkdir(), "discriminator_name_or_path: "),
    ],
)
def test_what_is_no_discriminator_is_refused_by_name(tmp_path, make, message):
    folder = tmp_path / "network"
    make(folder)
    with pytest.raises(InputError, match=message) as error:
        ElectraForPretraining.from_published(folder)
    assert str(folder) in str(error.value) and "discriminator_name_or_path" in str(error.value)


def test_a_discriminator_given_as_the_generator_is_refused(published):
    with pytest.raises(InputError, match="generator_name_or_path: .* is not an ELECTRA that predicts tokens"):
        ElectraForPretraining.from_published(published(), published())


def test_an_encoder_that_predicts_tokens_continues_with_an_objective_that_does(published, rows):
    folder = published(ElectraForMaskedLM)
    pair = ElectraForPretraining.from_published(folder, objective="mlm")
    assert_equal(dict(pair.discriminator.state_dict()), dict(ElectraForMaskedLM.from_pretrained(folder).state_dict()))
    assert pair.generator is None and torch.isfinite(pair(rows(2)).loss)


def test_a_generator_alone_is_not_continued():
    with pytest.raises(InputError, match="generator_name_or_path: .* Give the discriminator_name_or_path, too"):
        ModelArguments(generator_name_or_path="me/generator")
