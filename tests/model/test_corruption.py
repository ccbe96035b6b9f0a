"""The rules of REFERENCE section 1 that are pure functions of tensors (Clark et al. 2020 and the authors' code)."""

import math

import pytest
import torch

from electra_hf.model.corruption import corrupt, mask_tokens, sample_tokens, select_positions

SPECIAL = [0, 2, 3, 4]  # [PAD] [CLS] [SEP] [MASK]; [UNK] is 1


def select(input_ids, mask_probability=0.15):
    return select_positions(input_ids, input_ids != 0, SPECIAL, mask_probability)


def test_rule_1_of_the_selected_85_percent_become_mask_and_the_rest_stay():
    torch.manual_seed(0)
    input_ids = torch.randint(5, 1000, (2000, 128))
    positions, is_selected = select(input_ids)
    masked_ids = mask_tokens(input_ids, positions, is_selected, mask_token_id=4)
    at_selected = masked_ids.gather(1, positions)
    is_mask = at_selected == 4
    share, count = is_mask.double().mean().item(), is_mask.numel()
    assert abs(share - 0.85) < 4 * math.sqrt(0.85 * 0.15 / count)
    # None becomes a random token: what is not [MASK] is the original.
    assert torch.equal(at_selected[~is_mask], input_ids.gather(1, positions)[~is_mask])
    elsewhere = torch.ones_like(input_ids, dtype=torch.bool).scatter(1, positions, False)
    assert torch.equal(masked_ids[elsewhere], input_ids[elsewhere])


def test_rule_2_specials_are_never_selected_and_unknown_tokens_may_be():
    torch.manual_seed(0)
    input_ids = torch.tensor([[2, 1, 7, 3, 4, 1, 8, 3]]).repeat(500, 1)
    positions, is_selected = select(input_ids, mask_probability=0.25)
    chosen = set(input_ids.gather(1, positions)[is_selected].tolist())
    assert chosen == {1, 7, 8}


def test_rule_3_a_row_of_128_selects_19_distinct_positions():
    torch.manual_seed(0)
    input_ids = torch.randint(5, 1000, (64, 128))
    positions, is_selected = select(input_ids)
    assert positions.shape == (64, 19) and is_selected.all()
    assert all(len(set(row)) == 19 for row in positions.tolist())


def test_every_candidate_position_is_equally_likely():
    torch.manual_seed(0)
    input_ids = torch.full((20_000, 10), 7)
    positions, _ = select(input_ids, mask_probability=0.3)
    shares = torch.bincount(positions.flatten(), minlength=10) / 20_000
    assert (shares - 0.3).abs().max() < 4 * math.sqrt(0.3 * 0.7 / 20_000)


def sample(logits, temperature=1.0):
    return sample_tokens(logits, logits.softmax(-1), temperature)


def test_rule_5_samples_follow_the_softmax_at_temperature_1():
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -30.0])
    expected = [math.exp(x) for x in logits.tolist()]
    expected = torch.tensor([x / sum(expected) for x in expected])
    draws = 100_000
    counts = torch.bincount(sample(logits.expand(1, draws, 5)).flatten(), minlength=5)
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() <= 4 * deviation + 1e-9).all()


def test_a_temperature_divides_the_logits_before_a_sample_is_drawn():
    logits = torch.tensor([2.0, 0.0, -1.0])
    torch.manual_seed(0)
    samples = sample(logits.expand(1, 40_000, 3), temperature=2.0)
    weights = [math.exp(logit / 2.0) for logit in logits.tolist()]
    expected = [weight / sum(weights) for weight in weights]
    shares = [(samples == token).double().mean().item() for token in range(3)]
    assert shares == pytest.approx(expected, abs=0.01)


def test_whole_words_are_selected_but_for_the_last_one():
    continues_word = torch.zeros(100, dtype=torch.bool)
    continues_word[50:] = True
    # Words of three tokens, [CLS] and [SEP] around them; 6 of 32 positions: two whole words.
    word = torch.tensor([10, 60, 61])
    ids = torch.cat([torch.tensor([2]), word.repeat(10), torch.tensor([3])]).expand(200, -1)
    torch.manual_seed(0)
    positions, is_selected = select_positions(ids, ids != 0, SPECIAL, 0.19, continues_word)
    assert is_selected.all() and positions.shape == (200, 6)
    words = (positions - 1) // 3
    for row in words.tolist():
        assert sorted(row.count(word) for word in set(row)) == [3, 3]
    assert len({tuple(sorted(set(row))) for row in words.tolist()}) > 30  # and not always the same ones


def test_a_row_that_begins_inside_a_word_never_selects_what_stands_before_it():
    continues_word = torch.arange(100) >= 50
    ids = torch.tensor([[2, 60, 61, 62, 63, 3]]).expand(50, -1)
    positions, _ = select_positions(ids, ids != 0, SPECIAL, 0.5, continues_word)
    assert set(positions.flatten().tolist()) <= {1, 2, 3, 4}


def test_a_sample_is_always_in_the_vocabulary():
    torch.manual_seed(0)
    certain = torch.full((1, 1000, 7), -1e9)
    certain[..., 6] = 0.0  # the last entry: rounding must not push a sample past it
    assert (sample(certain) == 6).all()


@pytest.mark.parametrize(("temperature", "share"), [(0.01, 1.0), (1000.0, 0.001)])
def test_a_temperature_far_from_1_draws_the_best_token_or_any(temperature, share):
    torch.manual_seed(0)
    logits = torch.zeros(1000)
    logits[600] = 200.0 if temperature > 1 else 0.1  # at temperature 1 all others have the probability 0, or 0.001
    samples = sample(logits.expand(20_000, 1000), temperature)
    expected = (logits.double() / temperature).softmax(-1)[600]
    assert abs((samples == 600).double().mean() - expected) <= 4 * (expected * (1 - expected) / 20_000) ** 0.5 + 1e-9
    assert expected == pytest.approx(share, rel=0.3)


def test_rule_6_the_samples_overwrite_every_selected_token_and_no_mask_is_left():
    input_ids = torch.tensor([[2, 10, 11, 12, 3]])
    positions = torch.tensor([[1, 3]])
    selected = torch.ones_like(positions, dtype=torch.bool)
    corrupted_ids, _ = corrupt(input_ids, positions, selected, samples=torch.tensor([[20, 21]]))
    assert corrupted_ids.tolist() == [[2, 20, 11, 21, 3]]


def test_rule_7_a_correct_guess_counts_as_original():
    input_ids = torch.tensor([[2, 10, 11, 12, 3]])
    positions = torch.tensor([[1, 3]])
    selected = torch.ones_like(positions, dtype=torch.bool)
    corrupted_ids, is_replaced = corrupt(input_ids, positions, selected, samples=torch.tensor([[10, 21]]))
    assert corrupted_ids.tolist() == [[2, 10, 11, 21, 3]]
    assert is_replaced.tolist() == [[False, False, False, True, False]]


def test_rule_16_padding_is_never_selected_and_the_number_follows_the_length_of_the_row():
    torch.manual_seed(0)
    input_ids = torch.randint(5, 1000, (3, 100))
    input_ids[1, 40:] = 0
    input_ids[2, 4:] = 0
    positions, is_selected = select(input_ids)
    assert is_selected.sum(1).tolist() == [15, 6, 1]  # 15 % of 100, of 40, and at least one
    assert (input_ids.gather(1, positions) != 0).all()
    samples = torch.full_like(positions, 4999)
    corrupted_ids, is_replaced = corrupt(input_ids, positions, is_selected, samples)
    assert is_replaced.sum(1).tolist() == [15, 6, 1]
    assert torch.equal(corrupted_ids == 0, input_ids == 0)


def test_a_row_with_nothing_to_select_stays_as_it_is():
    input_ids = torch.tensor([[2, 3, 3, 0, 0, 0, 0, 0]])
    positions, is_selected = select(input_ids)
    assert not is_selected.any()
    assert torch.equal(mask_tokens(input_ids, positions, is_selected, 4), input_ids)
    corrupted_ids, is_replaced = corrupt(input_ids, positions, is_selected, torch.full_like(positions, 9))
    assert torch.equal(corrupted_ids, input_ids) and not is_replaced.any()
