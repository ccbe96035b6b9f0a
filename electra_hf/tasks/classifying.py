"""Fine-tuning a classifier: texts become inputs, a seed becomes a model, its outputs become answers and scores."""

import math
from dataclasses import dataclass, field
from statistics import mean, pstdev

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
)

from electra_hf.tasks.classification import ClassificationData, Example
from electra_hf.tasks.classification_metrics import (
    answer_mean,
    answer_most_frequently,
    compute_label_scores,
    compute_number_scores,
)
from electra_hf.tasks.finetuning import (
    EncoderArguments,
    FinetuningArguments,
    fine_tune,
    load_config,
    load_encoder_tokenizer,
    longest_window,
)


@dataclass
class ClassifierTrainingArguments(FinetuningArguments):
    """`FinetuningArguments`, with as many epochs as the paper took for the task."""

    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Passes over the training part (default: the paper's, 3; RTE and STS-B: 10)."}
    )

    def __post_init__(self) -> None:
        given = self.num_train_epochs
        self.num_train_epochs = 3.0 if given is None else given  # the checks of every recipe expect a number
        super().__post_init__()
        # None stays None until the task is known, which has its own number (table 7).
        self.num_train_epochs = given


@dataclass
class ClassifierInputs:
    """What the model reads: inputs of the training part and of each test, and how many were cut to `max_length`."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    train: list[dict]
    tests: dict[str, list[dict]]
    train_cut: int
    tests_cut: int


def make_inputs(encoder_args: EncoderArguments, data: ClassificationData, max_length: int | None) -> ClassifierInputs:
    """Load configuration and tokenizer and encode every example. Raises `InputError` if they do not fit.

    The tokenizer remembers max_length, so that a pipeline with truncation=True reads what the model was trained on.
    """
    config = load_config(encoder_args.model_name_or_path, data.labels or ["score"])
    # Otherwise the library guesses it from the first batch: whole numbers would become labels.
    config.problem_type = "single_label_classification" if data.labels else "regression"
    tokenizer = load_encoder_tokenizer(encoder_args)
    # Stock pipelines cut where the tokenizer tells them to; without it a long text would crash them.
    tokenizer.model_max_length = longest_window(max_length, tokenizer, config)
    train, train_cut = encode(data.train, _train_targets(data), tokenizer)
    # The Trainer needs some target to evaluate; scores are counted from the answers, never from these zeros.
    tests = {name: encode(examples, [0] * len(examples), tokenizer) for name, examples in data.tests.items()}
    return ClassifierInputs(
        config,
        tokenizer,
        train,
        {name: inputs for name, (inputs, _) in tests.items()},
        train_cut,
        sum(cut for _, cut in tests.values()),
    )


def encode(
    examples: list[Example], targets: list[int] | list[float], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict], int]:
    """Inputs as the Trainer takes them, and how many examples were longer than the tokenizer's model_max_length.

    A pair is one input with two token types; of a pair that is too long the longer text is cut.
    """
    # Two lists for pairs: the tokenizer then writes [SEP] and token types between them, as in pretraining.
    columns = list(zip(*(example.texts for example in examples), strict=True))
    encoded = tokenizer(*map(list, columns), truncation="longest_first", return_token_type_ids=True)
    rows = [
        {name: encoded[name][index] for name in encoded} | {"labels": target} for index, target in enumerate(targets)
    ]
    # Cut texts are counted and told, since a score on half a text surprises.
    return rows, sum(bool(encoding.overflowing) for encoding in encoded.encodings)


def train_classifier(
    seed: int,
    encoder_args: EncoderArguments,
    training_args: FinetuningArguments,
    data: ClassificationData,
    inputs: ClassifierInputs,
) -> Trainer:
    """Fine-tune one model with this seed. A model of numbers is trained on standardised ones and answers in theirs."""
    trainer = fine_tune(
        seed,
        AutoModelForSequenceClassification,
        encoder_args,
        training_args,
        inputs.config,
        inputs.tokenizer,
        inputs.train,
        data_collator=DataCollatorWithPadding(inputs.tokenizer),
    )
    if not data.labels:
        _rescale_output(trainer.model, *_mean_and_sd(data))
    return trainer


def _train_targets(data):
    if data.labels:
        return [data.labels.index(example.label) for example in data.train]
    # Prices in the thousands or shares below one: the head starts near zero, and the paper's rates are for targets
    # near one.
    center, spread = _mean_and_sd(data)
    return [(example.number - center) / spread for example in data.train]


def _mean_and_sd(data):
    numbers = [example.number for example in data.train]
    return mean(numbers), pstdev(numbers) or 1.0  # 1.0: a sample of the training part may be constant


@torch.no_grad()
def _rescale_output(model, center, spread):
    """Let the last layer give numbers in their own unit: the head learns at the same pace whatever that is."""
    # The last linear layer, whatever the head of a family looks like inside.
    (*_, output) = (module for module in model.modules() if isinstance(module, nn.Linear))
    output.weight.mul_(spread)
    output.bias.mul_(spread).add_(center)


def score_tests(
    trainer: Trainer, data: ClassificationData, inputs: ClassifierInputs
) -> tuple[dict[str, float], dict[str, list]]:
    """The scores of every test by their names in metrics.json, and the answers by the test's name.

    The first test's scores are `eval_accuracy` and so on, another one's `eval_NAME_accuracy`. eval_loss is the mean
    cross-entropy, of numbers the mean squared error. Raises `FloatingPointError` where it is not finite.
    """
    scores, answers = {}, {}
    for name, examples in data.tests.items():
        # Sums over thousands of examples, which half precision would round.
        logits = np.asarray(trainer.predict(inputs.tests[name]).predictions, dtype=np.float32)
        answers[name], found = score(logits, examples, data.labels)
        if not math.isfinite(found["loss"]):
            raise FloatingPointError(
                f"The loss is {found['loss']}. Lower learning_rate, or warm up for longer (warmup_steps)."
            )
        # MNLI has two tests: the first, matched, is the one that the paper's table shows.
        prefix = "eval_" if name == next(iter(data.tests)) else f"eval_{name}_"
        scores |= {f"{prefix}{key}": value for key, value in found.items()}
    return scores, answers


def score(logits: np.ndarray, examples: list[Example], labels: list[str]) -> tuple[list, dict[str, float]]:
    """The answers to (N, number of labels) logits, or numbers (N, 1) where there are no labels, and their scores."""
    if not labels:
        gold = [example.number for example in examples]
        answers = logits[:, 0].tolist()
        loss = float(np.mean((logits[:, 0] - np.array(gold)) ** 2))
        # No correlations of NaN: the caller refuses such a loss with a message of its own.
        return answers, {"loss": loss} | (compute_number_scores(answers, gold) if math.isfinite(loss) else {})
    gold = [example.label for example in examples]
    answers = [labels[index] for index in logits.argmax(-1)]
    loss = F.cross_entropy(torch.tensor(logits), torch.tensor([labels.index(label) for label in gold]))
    return answers, {"loss": float(loss)} | compute_label_scores(answers, gold, labels)


def describe_data(data: ClassificationData, inputs: ClassifierInputs) -> dict[str, float]:
    """What needs no network: the baseline on the first test, how many examples there are, how many were cut."""
    # The baseline stands beside the headline scores, which are those of the first test.
    test = next(iter(data.tests.values()))
    if data.labels:
        train_labels = [example.label for example in data.train]
        baseline = answer_most_frequently(train_labels, [example.label for example in test], data.labels)
    else:
        baseline = answer_mean([example.number for example in data.train], [example.number for example in test])
    return baseline | {
        "train_examples": len(data.train),
        "train_examples_cut": inputs.train_cut,
        "test_examples": sum(map(len, data.tests.values())),
        "test_examples_cut": inputs.tests_cut,
    }
