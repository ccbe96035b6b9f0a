"""Fine-tune a tagger from a pretrained discriminator, over one seed or several, and score it beside a baseline.

accelerate launch recipes/finetune_token_classification.py --config recipes/esperanto_small/finetune_pos.yaml \
    --model_name_or_path output_dir/discriminator [--any_key value]
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments, set_seed

from electra_hf.alignment import IGNORED, gather_words, labels_and_losses, make_windows
from electra_hf.cards import CardArguments, fill_tagger_card
from electra_hf.checkpoints import check_writable
from electra_hf.errors import InputError
from electra_hf.figures import draw_confusion
from electra_hf.hub import push_results, take_push_settings
from electra_hf.optimization import layerwise_parameter_groups
from electra_hf.recipe import run_recipe, save_recipe
from electra_hf.tagging import (
    TaggingArguments,
    build_tagger,
    count_unknown_labels,
    list_labels,
    load_tagged_sentences,
    load_tagger_config,
    longest_window,
    tag_most_frequently,
)
from electra_hf.tagging_metrics import compute_tagging_scores, format_report, summarise_runs, write_predictions
from electra_hf.tokenization import load_tokenizer, save_tokenizer
from electra_hf.trackers import guard_trackers


@dataclass
class ModelArguments:
    """The encoder to fine-tune, or its random twin."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A discriminator: a folder or a model on the Hub."}
    )
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Its tokenizer (default: beside it)."})
    from_scratch: bool = field(
        default=False,
        metadata={"help": "Take its shape and tokenizer, but random weights: what pretraining is worth."},
    )


@dataclass
class FinetuningArguments(TrainingArguments):
    """`TrainingArguments` with the paper's numbers for fine-tuning (table 7, small) as defaults."""

    seeds: list[int] = field(
        default_factory=list, metadata={"help": "One run per seed, mean and sd over them (default: `seed` alone)."}
    )
    layerwise_lr_decay: float = field(default=0.8, metadata={"help": "Each layer learns at this times the one above."})
    published_decay: bool = field(default=False, metadata={"help": "The official code's form: one factor more."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of the head."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the training part."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Windows a device takes at a time."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Windows a device evaluates at a time."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up; below 1, a share of all."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})
    logging_steps: float = field(default=0.1, metadata={"help": "Steps between two logs; below 1, a share of all."})
    save_strategy: str = field(default="no", metadata={"help": "A run is short: the model at its end is enough."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "True would log a NaN loss as 0."})

    def __post_init__(self):
        super().__post_init__()
        self.seeds = self.seeds or [self.seed]
        self.dataloader_pin_memory &= torch.cuda.is_available()  # on a CPU it does nothing but warn
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds: expected different numbers, got {self.seeds}; a seed twice is the same run.")
        if self.hub_token is not None:
            raise InputError(
                "hub_token: give the token by `hf auth login` or the variable HF_TOKEN, not as a setting."
            )


ARGUMENTS = (ModelArguments, TaggingArguments, CardArguments, FinetuningArguments)


def main(model_args, data_args, card_args, training_args):
    push = take_push_settings(training_args)
    check_writable(training_args.output_dir)
    output_dir = Path(training_args.output_dir)
    if model_args.model_name_or_path is None:
        raise InputError("Give model_name_or_path: the folder `discriminator` of a pretraining run, or a Hub model.")
    if output_dir.resolve() == Path(model_args.model_name_or_path).resolve():
        raise InputError(f"output_dir {output_dir} is the model to start from. Give the tagger a folder of its own.")

    # Data: sentences of words and tags, and the labels that the model is to know
    with training_args.main_process_first(desc="reading the tagged text"):
        train, test = load_tagged_sentences(data_args)
        labels = list_labels(train, data_args.labels_file)
    words, gold = [sentence.words for sentence in test], [sentence.tags for sentence in test]
    unknown_labels = count_unknown_labels(test, labels)

    # Windows: the first sub-token of a word carries its label, and every word is scored once
    config = load_tagger_config(model_args.model_name_or_path, labels)
    tokenizer = load_tokenizer(model_args.tokenizer_name_or_path or model_args.model_name_or_path)
    max_length = longest_window(data_args.max_length, tokenizer, config)
    train_windows = make_windows(train, tokenizer, config.label2id, max_length)
    test_windows = make_windows(test, tokenizer, config.label2id, max_length)

    # Fine-tuning and test, once per seed; the model that stays is the first one's, chosen before any score is known
    runs = []
    for seed in training_args.seeds:
        trainer = fine_tune(seed, model_args, training_args, config, tokenizer, train_windows)
        output = trainer.predict(test_windows)
        label_ids, losses = output.predictions
        predicted = [[labels[i] for i in row] for row in gather_words(test_windows, label_ids, test)]
        loss = float(losses[output.label_ids != IGNORED].mean())
        if not math.isfinite(loss):
            raise FloatingPointError(f"seed {seed}: the loss is {loss}. Lower learning_rate, or warm up for longer.")
        runs.append({"eval_loss": loss} | compute_tagging_scores(predicted, gold))
        if training_args.should_save:  # on the first process alone
            if len(training_args.seeds) > 1:
                write_json(runs[-1], Path(trainer.args.output_dir) / "metrics.json")
            if len(runs) == 1:
                trainer.model.save_pretrained(output_dir)
                save_tokenizer(tokenizer, output_dir)
                write_predictions(words, gold, predicted, output_dir / "predictions.tsv")
                draw_confusion(predicted, gold, output_dir / "confusion.png")

    # Report: the saved model's scores, mean and sd over the seeds, and what needs no network at all
    baseline = compute_tagging_scores(tag_most_frequently(train, test), gold)
    metrics = summarise_runs(runs) | {
        "baseline_most_frequent_tag_accuracy": baseline["eval_accuracy"],
        "baseline_most_frequent_tag_macro_f1": baseline["eval_macro_f1"],
        "train_sentences": len(train),
        "test_sentences": len(test),
        "test_words": sum(map(len, words)),
        "test_words_with_unknown_label": unknown_labels.total(),
    }
    if training_args.should_save:
        save_recipe(output_dir / "recipe.yaml", model_args, data_args, card_args, training_args, push)
        write_json(metrics, output_dir / "metrics.json")
        print(format_report(metrics, unknown_labels))

        # Card, and the Hub where it is asked for: whatever happens there, the results are on disk
        fill_tagger_card(output_dir, push.tagger, **asdict(card_args))
        push_results({output_dir: push.tagger}, push)


def fine_tune(seed, model_args, training_args, config, tokenizer, train_windows):
    """Train one tagger, and return the `Trainer` that holds it."""
    set_seed(seed)
    model = build_tagger(model_args.model_name_or_path, config, model_args.from_scratch)
    several = len(training_args.seeds) > 1
    output_dir = Path(training_args.output_dir, f"seed-{seed}" if several else "")

    # The head learns at learning_rate, and every layer at layerwise_lr_decay times the one above (rule 18)
    groups = layerwise_parameter_groups(
        model,
        training_args.learning_rate,
        training_args.layerwise_lr_decay,
        training_args.weight_decay,
        training_args.published_decay,
    )
    betas = (training_args.adam_beta1, training_args.adam_beta2)
    trainer = Trainer(
        model,
        replace(training_args, seed=seed, output_dir=str(output_dir)),
        data_collator=DataCollatorForTokenClassification(tokenizer),
        train_dataset=train_windows,
        processing_class=tokenizer,
        optimizers=(torch.optim.AdamW(groups, betas=betas, eps=training_args.adam_epsilon), None),
        preprocess_logits_for_metrics=labels_and_losses,
    )
    guard_trackers(trainer)
    trainer.train()
    return trainer


def write_json(values, path):
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)
