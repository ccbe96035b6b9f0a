"""Each objective of the paper's table 5 against a plain, slow reference; and what exists while it is computed."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForTokenClassification, ElectraForMaskedLM, ElectraForPreTraining

from electra_hf.errors import InputError
from electra_hf.model import objectives
from electra_hf.model.modeling import ElectraForPretraining
from electra_hf.model.objectives import OBJECTIVES, in_chunks, token_losses, token_or_copy_losses
from electra_hf.model.sharing import EMBEDDING_SHARINGS

PAIRS = [(objective, sharing) for objective in OBJECTIVES for sharing in EMBEDDING_SHARINGS]


def probabilities(logits):
    exponentials = torch.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def reference_loss(model, input_ids, output, masked_ids):
    """The paper's losses in its own words, a token at a time, from the draws of a forward pass."""
    objective, rows = model.config.objective, range(input_ids.shape[0])
    selected = [(row, position) for row in rows for position in output.selected_positions[row].tolist()]
    everywhere = [(row, position) for row in rows for position in range(input_ids.shape[1])]
    total = 0.0
    if objective != "mlm":  # the generator: masked language modelling
        logits = model.generator(masked_ids).logits
        terms = [-torch.log(probabilities(logits[at])[input_ids[at]]) for at in selected]
        total = total + sum(terms) / len(terms)
    if objective in ("electra", "electra_15"):  # is this token the original?
        logits, terms = model.discriminator(output.corrupted_ids).logits, []
        for at in everywhere if objective == "electra" else selected:
            replaced = 1 / (1 + torch.exp(-logits[at]))
            terms.append(-torch.log(replaced if output.corrupted_ids[at] != input_ids[at] else 1 - replaced))
        return total + 50 * sum(terms) / len(terms)
    seen = masked_ids if objective == "mlm" else output.corrupted_ids
    hidden = model.discriminator.electra(seen)[0]
    logits, terms = model.discriminator(seen).logits, []
    for at in everywhere if objective == "all_tokens_mlm" else selected:
        probability = probabilities(logits[at])[input_ids[at]]
        if objective == "all_tokens_mlm":  # D · copy + (1 - D) · softmax
            copy = 1 / (1 + torch.exp(-model.copy_gate(hidden[at])))
            probability = copy * (seen[at] == input_ids[at]) + (1 - copy) * probability
        terms.append(-torch.log(probability).squeeze())
    return total + sum(terms) / len(terms)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradients_equal_the_slow_reference(tiny_model, rows, monkeypatch, objective):
    masked = []  # what the encoder of the generator, or of `mlm`, read
    model, reference, input_ids = tiny_model(objective=objective), tiny_model(objective=objective), rows(4)
    reader = model.generator or model.discriminator
    reader.electra.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: masked.append(kwargs["input_ids"]), with_kwargs=True
    )
    monkeypatch.setattr(objectives, "POSITIONS_A_CHUNK", 24)  # 64 positions: two whole chunks and a part of one
    output = model(input_ids)
    output.loss.backward()
    loss = reference_loss(reference, input_ids, output, masked[0])
    loss.backward()
    torch.testing.assert_close(output.loss, loss)
    for (name, parameter), twin in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("objective", "sharing"), PAIRS)
def test_every_objective_with_every_sharing_is_saved_reloaded_and_exported(
    tiny_model, rows, tmp_path, objective, sharing
):
    model, input_ids = tiny_model(objective=objective, embedding_sharing=sharing), rows(2)
    take_a_step(model, input_ids)
    model.save_pretrained(tmp_path / "pair")
    model.save_discriminator(tmp_path / "discriminator")
    again = ElectraForPretraining.from_pretrained(tmp_path / "pair")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())

    plain_class = ElectraForMaskedLM if OBJECTIVES[objective].predicts_tokens else ElectraForPreTraining
    plain, loading = plain_class.from_pretrained(tmp_path / "discriminator", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    torch.testing.assert_close(plain(input_ids).logits, model.discriminator(input_ids).logits)
    tagger = AutoModelForTokenClassification.from_pretrained(tmp_path / "discriminator")
    torch.testing.assert_close(tagger.electra(input_ids)[0], model.discriminator.electra(input_ids)[0])


def take_a_step(model, input_ids):
    """So that no residual, bias or gate is at its start."""
    model(input_ids).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad.sign()


@pytest.mark.parametrize(
    ("objective", "sharing"),
    [*((objective, "shared") for objective in OBJECTIVES), ("all_tokens_mlm", "gradient_disentangled")],
)
def test_every_objective_is_one_graph(tiny_model, rows, objective, sharing):
    torch._dynamo.reset()
    model = tiny_model(objective=objective, embedding_sharing=sharing)
    torch.compile(model, fullgraph=True, backend="aot_eager")(rows(2)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_mlm_has_no_generator_and_cannot_save_one(tiny_model, rows, tmp_path):
    model = tiny_model(objective="mlm")
    output = model(rows(2))
    assert model.generator is None and output.generator_loss is None
    assert (output.corrupted_ids == 4).any()  # [MASK]
    with pytest.raises(InputError, match="objective mlm has no generator"):
        model.save_generator(tmp_path)


def test_the_copy_gate_takes_over_what_the_vocabulary_cannot_say():
    logits = torch.zeros(2, 5)  # each of the five tokens has 1/5
    losses, is_right = token_or_copy_losses(
        logits, torch.tensor([2.0, 2.0]), torch.tensor([1, 1]), torch.tensor([1, 3])
    )
    copy = 1 / (1 + math.exp(-2.0))
    assert losses.tolist() == pytest.approx([-math.log(copy + (1 - copy) / 5), -math.log((1 - copy) / 5)])
    assert is_right.tolist() == [True, False]


def test_with_the_gate_closed_the_vocabulary_alone_decides():
    logits = torch.tensor([[0.0, 3.0, 0.0]])
    _, is_right = token_or_copy_losses(logits, torch.tensor([-9.0]), torch.tensor([0]), torch.tensor([1]))
    assert is_right.item()


class MostLogits(TorchDispatchMode):
    """Notes for how many positions any operation, forward or backward, gives out a number per vocabulary entry."""

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size, self.positions = vocab_size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocab_size,):
                self.positions = max(self.positions, tensor.numel() // self.vocab_size)
        return result


def test_vocabulary_logits_of_all_positions_never_exist_at_once(tiny_model, rows, monkeypatch):
    monkeypatch.setattr(objectives, "POSITIONS_A_CHUNK", 32)
    model, input_ids = tiny_model(objective="all_tokens_mlm"), rows(16)
    with MostLogits(vocab_size=40) as most:
        model(input_ids).loss.backward()
    assert most.positions == 32  # of 256; the generator's are those of 16 times 2 selected positions


def test_chunks_give_what_the_whole_gives(monkeypatch):
    monkeypatch.setattr(objectives, "POSITIONS_A_CHUNK", 3)
    values, weight = torch.randn(8, 4), torch.randn(4, requires_grad=True)
    (parts,) = in_chunks(lambda chunk: (torch.tanh(chunk @ weight),), values)
    whole = torch.tanh(values @ weight)
    torch.testing.assert_close(parts, whole)
    (gradient,) = torch.autograd.grad(parts.sum(), weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole.sum(), weight)[0])


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("scale", [1.0, 300.0])  # at 300 the probability of most targets is too small for fp32
def test_token_losses_are_pytorchs_cross_entropy_in_double_precision(is_compiled, scale):
    torch.manual_seed(0)
    logits, targets, weights = scale * torch.randn(20, 150), torch.randint(150, (20,)), torch.rand(20)
    function = torch.compile(token_losses, backend="eager", fullgraph=True) if is_compiled else token_losses
    mine, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    losses, is_right, probabilities = function(mine, targets)
    expected = F.cross_entropy(exact, targets, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(probabilities.double(), exact.softmax(-1), rtol=1e-4, atol=1e-6)
    assert not probabilities.requires_grad
    assert torch.equal(is_right, logits.argmax(-1) == targets)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_a_second_backward_pass_over_the_same_losses_is_refused_not_wrong():
    losses, *_ = token_losses(torch.randn(4, 70, requires_grad=True), torch.arange(4))
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_logits_that_are_not_finite_give_losses_that_are_not():
    for broken in (float("nan"), float("inf")):
        logits = torch.randn(3, 70)
        logits[1, 5] = broken
        losses, *_ = token_losses(logits, torch.arange(3))
        assert losses.isfinite().tolist() == [True, False, True]
