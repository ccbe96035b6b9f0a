"""Fine-tune a classifier of texts or pairs, or a model of numbers, over one seed or several, beside a baseline.

accelerate launch recipes/finetune_text_classification.py --model_name_or_path output_dir/discriminator \
    --task sst2 --train_file SST-2/train.tsv --test_file SST-2/dev.tsv --output_dir outputs/sst2
accelerate launch recipes/finetune_text_classification.py \
    --config recipes/electra_small/finetune_text_classification.yaml \
    --train_file reviews.csv --text_columns review --label_column stars
"""

from dataclasses import asdict
from pathlib import Path

from electra_hf.files import replaced_files, write_json
from electra_hf.publish.cards import CardArguments, write_card
from electra_hf.publish.figures import draw_confusion, draw_scatter
from electra_hf.publish.hub import push_results, take_push_settings
from electra_hf.recipe import run_recipe, save_recipe
from electra_hf.tasks.classification import ClassificationArguments, load_examples
from electra_hf.tasks.classification_metrics import format_scores, score_each_label, write_predictions
from electra_hf.tasks.classifying import (
    ClassifierTrainingArguments,
    describe_data,
    make_inputs,
    score_tests,
    train_classifier,
)
from electra_hf.tasks.finetuning import EncoderArguments, check_folders, summarise_runs
from electra_hf.tasks.glue import TASKS
from electra_hf.text.tokenization import save_tokenizer

ARGUMENTS = (EncoderArguments, ClassificationArguments, CardArguments, ClassifierTrainingArguments)
MOST_LABELS_DRAWN = 60  # a larger picture cannot be read


def main(encoder_args, data_args, card_args, training_args):
    push = take_push_settings(training_args)
    check_folders(encoder_args, training_args.output_dir)
    output_dir = Path(training_args.output_dir)
    # A task of GLUE has the number of epochs of the paper, which is 3 for most.
    epochs = TASKS[data_args.task].epochs if data_args.task else 3.0
    training_args.num_train_epochs = training_args.num_train_epochs or epochs

    # Data: examples of every part, then the model's inputs; a pair is one input
    with training_args.main_process_first(desc="reading the texts"):
        data = load_examples(data_args)
    inputs = make_inputs(encoder_args, data, data_args.max_length)

    # Fine-tuning and test, once per seed; the model that stays is the first one's, chosen before any score is known
    training_args.tell_device()
    runs, answers = [], {}
    for seed in training_args.seeds:
        trainer = train_classifier(seed, encoder_args, training_args, data, inputs)
        scores, answers_of_seed = score_tests(trainer, data, inputs)
        runs.append(scores)
        answers = answers or answers_of_seed
        if training_args.should_save:  # on the first process alone
            if len(training_args.seeds) > 1:
                write_json(Path(trainer.args.output_dir) / "metrics.json", scores)
            if len(runs) == 1:
                with replaced_files(output_dir) as unfinished:
                    trainer.model.save_pretrained(unfinished)
                    save_tokenizer(inputs.tokenizer, unfinished)
                write_answers(data, answers, output_dir)

    # Report: the saved model's scores, mean and sd over the seeds, and what needs no network at all
    if training_args.should_save:
        metrics = summarise_runs(runs) | describe_data(data, inputs)
        save_recipe(output_dir / "recipe.yaml", encoder_args, data_args, card_args, training_args, push)
        write_json(output_dir / "metrics.json", metrics)
        print(format_scores(metrics))

        # Card, and the Hub where it is asked for: whatever happens there, the results are on disk
        examples, *_ = data.tests.values()
        gold, found = [example.label for example in examples], next(iter(answers.values()))
        rows = score_each_label(found, gold) if data.labels else None
        pair = len(examples[0].texts) == 2
        write_card(output_dir, "classifier", push.repo_id, label_scores=rows, pair=pair, **asdict(card_args))
        push_results({output_dir: push.repo_id}, push)


def write_answers(data, answers, output_dir):
    """predictions.tsv, of another test predictions_NAME.tsv; and a picture of the first test's answers."""
    for index, (name, examples) in enumerate(data.tests.items()):
        gold = [example.label if data.labels else example.number for example in examples]
        file = f"predictions_{name}.tsv" if index else "predictions.tsv"
        write_predictions([example.texts for example in examples], gold, answers[name], output_dir / file)
        if index == 0 and not data.labels:
            draw_scatter(answers[name], gold, output_dir / "scatter.png")
        elif index == 0 and len(data.labels) <= MOST_LABELS_DRAWN:
            title = "Share of the texts of each gold label"
            draw_confusion([answers[name]], [gold], output_dir / "confusion.png", title=title)


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)
