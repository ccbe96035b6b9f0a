"""Fine-tune a tagger from a pretrained discriminator, over one seed or several, and score it beside a baseline.

accelerate launch recipes/finetune_token_classification.py --config recipes/esperanto_small/finetune_pos.yaml \
    --model_name_or_path output_dir/discriminator [--any_key value]
"""

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from electra_hf.files import replaced_files, write_json
from electra_hf.publish.cards import CardArguments, fill_tagger_card
from electra_hf.publish.figures import draw_confusion
from electra_hf.publish.hub import push_results, take_push_settings
from electra_hf.recipe import run_recipe, save_recipe
from electra_hf.tasks.alignment import IGNORED, WORD_COUNTS, gather_words, labels_and_losses, make_windows
from electra_hf.tasks.finetuning import (
    EncoderArguments,
    FinetuningArguments,
    check_folders,
    fine_tune,
    load_config,
    load_encoder_tokenizer,
    longest_window,
    summarise_runs,
)
from electra_hf.tasks.spans import recognise_scheme, score_each_type
from electra_hf.tasks.tagging import (
    TaggingArguments,
    count_unknown_labels,
    list_labels,
    load_tagged_sentences,
    tag_most_frequently,
)
from electra_hf.tasks.tagging_metrics import compute_tagging_scores, format_scores, write_predictions
from electra_hf.text.tokenization import save_tokenizer

ARGUMENTS = (EncoderArguments, TaggingArguments, CardArguments, FinetuningArguments)


def main(encoder_args, data_args, card_args, training_args):
    push = take_push_settings(training_args)
    check_folders(encoder_args, training_args.output_dir)
    output_dir = Path(training_args.output_dir)

    # Data: sentences of words and tags, and the labels that the model is to know
    with training_args.main_process_first(desc="reading the tagged text"):
        train, test = load_tagged_sentences(data_args)
        labels = list_labels(train, data_args.labels_file)
    words, gold = [sentence.words for sentence in test], [sentence.tags for sentence in test]
    # Words of the test whose tag no model here can give: they count as errors, and the report says how many.
    unknown_labels = count_unknown_labels(test, labels)
    scheme = recognise_scheme(train, data_args.tag_scheme)
    recognise_scheme(test, scheme or "none")  # the test has to be in the same one

    # Windows: the first token of a word carries its label, and every word is scored once
    config = load_config(encoder_args.model_name_or_path, labels)
    tokenizer = load_encoder_tokenizer(encoder_args)
    max_length = longest_window(data_args.max_length, tokenizer, config)
    # Whoever loads the tagger reads windows of the same length, and running text if it did here
    tokenizer.model_max_length = max_length
    config.running_text = any(sentence.spans for sentence in train)
    train_counts, test_counts = Counter(), Counter()
    train_windows = make_windows(train, tokenizer, config.label2id, max_length, train_counts)
    test_windows = make_windows(test, tokenizer, config.label2id, max_length, test_counts)

    # Fine-tuning and test, once per seed; the model that stays is the first one's, chosen before any score is known
    training_args.tell_device()
    runs = []
    for seed in training_args.seeds:
        trainer = fine_tune(
            seed,
            AutoModelForTokenClassification,
            encoder_args,
            training_args,
            config,
            tokenizer,
            train_windows,
            data_collator=DataCollatorForTokenClassification(tokenizer),
            preprocess_logits_for_metrics=labels_and_losses,
        )
        output = trainer.predict(test_windows)
        label_ids, losses = output.predictions
        predicted = [[labels[i] for i in row] for row in gather_words(test_windows, label_ids, test)]
        loss = float(losses[output.label_ids != IGNORED].mean())
        # Such a model would give one tag to all words, and look like a poor one.
        if not math.isfinite(loss):
            raise FloatingPointError(f"seed {seed}: the loss is {loss}. Lower learning_rate, or warm up for longer.")
        runs.append({"eval_loss": loss} | compute_tagging_scores(predicted, gold, scheme))
        if training_args.should_save:  # on the first process alone
            if len(training_args.seeds) > 1:
                write_json(Path(trainer.args.output_dir) / "metrics.json", runs[-1])
            if len(runs) == 1:
                types = score_each_type(predicted, gold, scheme) if scheme else None
                with replaced_files(output_dir) as unfinished:
                    trainer.model.save_pretrained(unfinished)
                    save_tokenizer(tokenizer, unfinished)
                write_predictions(words, gold, predicted, output_dir / "predictions.tsv")
                draw_confusion(predicted, gold, output_dir / "confusion.png")

    # Report: the saved model's scores, mean and sd over the seeds, and what needs no network at all
    baseline = compute_tagging_scores(tag_most_frequently(train, test), gold, scheme)
    metrics = summarise_runs(runs) | {
        "baseline_most_frequent_tag_accuracy": baseline["eval_accuracy"],
        "baseline_most_frequent_tag_macro_f1": baseline["eval_macro_f1"],
        "baseline_most_frequent_tag_f1": baseline["eval_f1"],
        "train_sentences": len(train),
        "test_sentences": len(test),
        "test_words": sum(map(len, words)),
        "test_words_with_unknown_label": unknown_labels.total(),
        **{f"train_{name}": train_counts[name] for name in WORD_COUNTS},
        **{f"test_{name}": test_counts[name] for name in WORD_COUNTS},
    }
    if training_args.should_save:
        save_recipe(output_dir / "recipe.yaml", encoder_args, data_args, card_args, training_args, push)
        write_json(output_dir / "metrics.json", metrics)
        print(format_scores(metrics, unknown_labels))

        # Card, and the Hub where it is asked for: whatever happens there, the results are on disk
        fill_tagger_card(output_dir, push.repo_id, scheme=scheme, types=types, **asdict(card_args))
        push_results({output_dir: push.repo_id}, push)


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)
