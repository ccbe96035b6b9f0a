"""Fine-tune an answerer, which finds the answer to a question in a text, over one seed or several, beside baselines.

accelerate launch recipes/finetune_question_answering.py \
    --config recipes/electra_small/finetune_question_answering.yaml \
    --train_file train-v2.0.json --test_file dev-v2.0.json --output_dir outputs/squad2
"""

from dataclasses import asdict
from pathlib import Path

from electra_hf.files import replaced_files, write_json
from electra_hf.publish.cards import CardArguments, write_card
from electra_hf.publish.hub import push_results, take_push_settings
from electra_hf.recipe import run_recipe, save_recipe
from electra_hf.tasks.answer_metrics import choose_language, describe_rule, format_scores
from electra_hf.tasks.answering import (
    AnswererTrainingArguments,
    describe_data,
    make_inputs,
    no_answer_probability,
    score_test,
    train_answerer,
)
from electra_hf.tasks.finetuning import EncoderArguments, check_folders, summarise_runs
from electra_hf.tasks.question_answering import QuestionAnsweringArguments, load_questions
from electra_hf.text.tokenization import save_tokenizer

ARGUMENTS = (EncoderArguments, QuestionAnsweringArguments, CardArguments, AnswererTrainingArguments)


def main(encoder_args, data_args, card_args, training_args):
    push = take_push_settings(training_args)
    check_folders(encoder_args, training_args.output_dir)
    output_dir = Path(training_args.output_dir)
    language = choose_language(data_args.answer_language, card_args.language)

    # Data: questions on texts, then windows of these that overlap
    with training_args.main_process_first(desc="reading the questions"):
        data = load_questions(data_args)
    inputs = make_inputs(encoder_args, data, data_args)

    # Fine-tuning and test, once per seed; the model that stays is the first one's, chosen before any score is known
    training_args.tell_device()
    runs = []
    for seed in training_args.seeds:
        trainer = train_answerer(seed, encoder_args, training_args, inputs)
        scores, found = score_test(trainer, data, inputs, data_args, language)
        runs.append(scores)
        if training_args.should_save:  # on the first process alone
            if len(training_args.seeds) > 1:
                write_json(Path(trainer.args.output_dir) / "metrics.json", scores)
            if len(runs) == 1:
                with replaced_files(output_dir) as unfinished:
                    trainer.model.save_pretrained(unfinished)
                    save_tokenizer(inputs.tokenizer, unfinished)
                write_answers(data.test, found, scores.get("no_answer_threshold"), output_dir)

    # Report: the saved model's scores, mean and sd over the seeds, and what needs no network at all
    if training_args.should_save:
        metrics = summarise_runs(runs) | describe_data(data, inputs, language)
        save_recipe(output_dir / "recipe.yaml", encoder_args, data_args, card_args, training_args, push)
        write_json(output_dir / "metrics.json", metrics)
        print(format_scores(metrics, language))

        # Card, and the Hub where it is asked for: whatever happens there, the results are on disk
        settings = {"doc_stride": inputs.doc_stride, "max_length": inputs.tokenizer.model_max_length}
        rule = describe_rule(language)
        write_card(output_dir, "question_answering", push.repo_id, rule=rule, **settings, **asdict(card_args))
        push_results({output_dir: push.repo_id}, push)


def write_answers(questions, found, threshold, output_dir):
    """predictions.json and, where questions may lack an answer, na_prob.json, for the official script to read."""
    answers = {question.id: one.above(threshold) for question, one in zip(questions, found, strict=True)}
    write_json(output_dir / "predictions.json", answers)
    path = output_dir / "na_prob.json"
    path.unlink(missing_ok=True)  # of an earlier run
    if threshold is not None:
        probabilities = [no_answer_probability(one.difference) for one in found]
        write_json(path, dict(zip(answers, probabilities, strict=True)))


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)
