"""The pair against a plain, slow, separately written reference, and what its folders load as."""

import math

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    ElectraForPreTraining,
    ElectraModel,
)

from electra_hf.model.building import start_positions_as_sinusoids
from electra_hf.model.corruption import mask_tokens, select_positions
from electra_hf.model.modeling import ElectraForPretraining


def reference_losses(model, input_ids, masked_ids, positions, corrupted_ids):
    """The paper's two losses with logits everywhere and loops over tokens (rules 4, 8, 9)."""
    generator_logits = model.generator(masked_ids).logits
    generator_terms, discriminator_terms = [], []
    for row in range(input_ids.shape[0]):
        for position in positions[row].tolist():
            scores = generator_logits[row, position]
            log_sum = torch.log(torch.exp(scores - scores.max()).sum()) + scores.max()
            generator_terms.append(log_sum - scores[input_ids[row, position]])
    discriminator_logits = model.discriminator(corrupted_ids).logits
    for row in range(input_ids.shape[0]):
        for position in range(input_ids.shape[1]):
            probability = 1 / (1 + torch.exp(-discriminator_logits[row, position]))
            replaced = corrupted_ids[row, position] != input_ids[row, position]
            discriminator_terms.append(-torch.log(probability if replaced else 1 - probability))
    return sum(generator_terms) / len(generator_terms), sum(discriminator_terms) / len(discriminator_terms)


def test_losses_and_gradients_equal_the_slow_reference(tiny_model, rows):
    model, reference, input_ids = tiny_model(), tiny_model(), rows(4)
    torch.manual_seed(1)
    output = model(input_ids)
    output.loss.backward()
    torch.manual_seed(1)  # the same draws again, in the order of forward
    positions, is_selected = select_positions(input_ids, input_ids != 0, [0, 2, 3, 4], 0.15)
    masked_ids = mask_tokens(input_ids, positions, is_selected, 4)
    assert torch.equal(positions, output.selected_positions)

    generator_loss, discriminator_loss = reference_losses(
        reference, input_ids, masked_ids, positions, output.corrupted_ids
    )
    (1.0 * generator_loss + 50.0 * discriminator_loss).backward()  # rule 10

    assert output.generator_loss.item() == pytest.approx(generator_loss.item(), abs=1e-5)
    assert output.discriminator_loss.item() == pytest.approx(discriminator_loss.item(), abs=1e-5)
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_rule_4_the_kept_tokens_count_in_the_generators_loss(tiny_model, rows, monkeypatch):
    # With everything kept, nothing masked, every selected position must still be in the loss.
    monkeypatch.setattr("electra_hf.model.corruption.KEEP_PROBABILITY", 1.0)
    model, input_ids = tiny_model(), rows(4)
    output = model(input_ids)
    scores = model.generator(input_ids).logits.log_softmax(-1)
    terms = [
        -scores[row, position, input_ids[row, position]]
        for row in range(4)
        for position in output.selected_positions[row].tolist()
    ]
    assert output.generator_loss.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-5)


def test_rule_5_no_gradient_flows_from_the_discriminator_to_the_generator(tiny_model, rows):
    model = tiny_model()
    model(rows(4)).discriminator_loss.backward()
    own = [p for n, p in model.named_parameters() if n.startswith("generator.") and ".embeddings." not in n]
    assert own and all(parameter.grad is None for parameter in own)


def test_rule_8_cls_and_sep_count_in_the_discriminators_loss_and_padding_does_not(tiny_model, rows):
    model, input_ids = tiny_model(), rows(2)
    input_ids[1, 9:] = 0
    attention_mask = (input_ids != 0).long()
    output = model(input_ids, attention_mask)
    terms = []
    for row, length in ((0, 16), (1, 9)):
        for position in range(length):
            logit = output.discriminator_logits[row, position].item()
            sign = 1 if output.is_replaced[row, position] else -1
            terms.append(math.log1p(math.exp(-sign * logit)))
    assert output.discriminator_loss.item() == pytest.approx(sum(terms) / 25, abs=1e-5)


def test_rule_16_what_stands_in_the_padding_changes_nothing(tiny_model, rows):
    model, input_ids = tiny_model(), rows(2)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 9:] = 0
    losses = []
    for filler in (0, 7):
        padded = input_ids.masked_fill(attention_mask == 0, filler)
        torch.manual_seed(0)
        output = model(padded, attention_mask)
        losses.append(output.loss.item())
        assert not output.is_replaced[attention_mask == 0].any()
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_rule_11_every_embedding_is_shared_and_the_projection_is_not(tiny_model):
    model = tiny_model(generator={"hidden_size": 16})
    theirs, ours = model.generator.electra, model.discriminator.electra
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
        assert getattr(theirs.embeddings, name).weight is getattr(ours.embeddings, name).weight, name
    assert theirs.embeddings.LayerNorm.bias is ours.embeddings.LayerNorm.bias
    assert theirs.embeddings_project.weight is not ours.embeddings_project.weight


def test_rule_12_the_generators_head_ends_in_the_shared_table_plus_its_own_bias(tiny_model):
    model = tiny_model()
    hidden = torch.randn(3, 8)
    head = model.generator.generator_predictions
    dense = hidden @ head.dense.weight.T + head.dense.bias
    gelu = dense * 0.5 * (1 + torch.erf(dense / math.sqrt(2)))
    normed = (gelu - gelu.mean(-1, keepdim=True)) / torch.sqrt(gelu.var(-1, unbiased=False, keepdim=True) + 1e-12)
    normed = normed * head.LayerNorm.weight + head.LayerNorm.bias
    table = model.discriminator.electra.embeddings.word_embeddings.weight
    with torch.no_grad():
        model.generator.generator_lm_head.bias.fill_(0.5)
    expected = normed @ table.T + 0.5
    torch.testing.assert_close(model.generator.generator_lm_head(head(hidden)), expected, rtol=1e-4, atol=1e-5)


def test_rule_9_the_loss_of_a_batch_is_the_mean_of_its_micro_batches(tiny_model, rows, draws_by_row):
    model, input_ids = tiny_model(), rows(8)
    model(input_ids).loss.backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    for size in (4, 2):
        model.zero_grad()
        for part in input_ids.split(size):
            (model(part).loss * size / 8).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_forward_pass_is_one_graph_without_a_break(tiny_model, rows):
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.isfinite(compiled(rows(2)).loss)


def test_a_saved_pair_comes_back_the_same_and_still_shares(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for again in (ElectraForPretraining.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
        assert again.generator.generator_lm_head.weight is again.discriminator.get_input_embeddings().weight


@pytest.mark.parametrize("plain_class", [ElectraForPreTraining, ElectraModel])
def test_the_pairs_folder_is_refused_by_a_plain_electra_class(tiny_model, tmp_path, plain_class):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(Exception, match="this folder holds a generator and a discriminator"):
        plain_class.from_pretrained(tmp_path)


def test_the_exported_parts_are_plain_hugging_face_models(tiny_model, rows, tmp_path):
    model, input_ids = tiny_model().eval(), rows(2)
    model.save_discriminator(tmp_path / "discriminator")
    model.save_generator(tmp_path / "generator")
    discriminator = ElectraForPreTraining.from_pretrained(tmp_path / "discriminator")
    torch.testing.assert_close(discriminator(input_ids).logits, model.discriminator(input_ids).logits)
    encoder = AutoModel.from_pretrained(tmp_path / "discriminator")
    torch.testing.assert_close(encoder(input_ids)[0], model.discriminator.electra(input_ids)[0])
    tagger = AutoModelForTokenClassification.from_pretrained(tmp_path / "discriminator")
    torch.testing.assert_close(tagger.electra(input_ids)[0], encoder(input_ids)[0])
    generator = AutoModelForMaskedLM.from_pretrained(tmp_path / "generator")
    torch.testing.assert_close(generator(input_ids).logits, model.generator(input_ids).logits)


def test_a_pair_continues_from_its_published_parts(tiny_model, rows, tmp_path):
    model, input_ids = tiny_model(), rows(2)
    model.save_discriminator(tmp_path / "discriminator")
    model.save_generator(tmp_path / "generator")
    again = ElectraForPretraining.from_published(tmp_path / "discriminator", tmp_path / "generator")
    torch.manual_seed(0)
    expected = model(input_ids).loss
    torch.manual_seed(0)
    torch.testing.assert_close(again(input_ids).loss, expected)


def test_a_sinusoidal_start_tells_near_positions_from_far_ones(tiny_model):
    model = tiny_model()
    start_positions_as_sinusoids(model.discriminator.electra.embeddings)
    table = model.generator.electra.embeddings.position_embeddings.weight  # shared
    products = table @ table.T
    assert products[5, 5] > products[5, 6] > products[5, 7] > products[5, 9]
    # Sinusoids know distance, not place: the same distance gives the same product.
    torch.testing.assert_close(products[3, 7], products[20, 24])
    words = model.generator.electra.embeddings.word_embeddings.weight
    assert table.std().item() == pytest.approx(2 * words.std().item(), rel=1e-5)
