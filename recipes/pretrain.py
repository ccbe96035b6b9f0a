"""Pretrain an ELECTRA on raw text: corpus, tokenizer, packed rows, the pair, and at the end a plain discriminator.

accelerate launch recipes/pretrain.py --config recipes/esperanto_small/pretrain.yaml [--any_key value]
"""

from dataclasses import asdict
from pathlib import Path

from transformers import set_seed

from electra_hf import ElectraTrainer
from electra_hf.errors import InputError
from electra_hf.files import write_json
from electra_hf.model.building import build_pair, check_published
from electra_hf.model.flops import train_flops
from electra_hf.publish.cards import CardArguments, fill_discriminator_card, fill_generator_card
from electra_hf.publish.figures import draw_curves
from electra_hf.publish.hub import push_results, take_push_settings
from electra_hf.recipe import run_recipe, save_recipe
from electra_hf.text.corpus import format_report, load_corpus
from electra_hf.text.packed_rows import (
    RowsArguments,
    adopt_settings,
    check_tokenizer,
    open_packed_rows,
    read_manifest,
)
from electra_hf.text.packing import check_rows, pack_dataset
from electra_hf.text.remote_rows import find_packed_rows
from electra_hf.text.run_tokenizer import prepare_tokenizer
from electra_hf.text.tokenization import measure_tokenizer
from electra_hf.training.arguments import ModelArguments, PretrainingArguments, TokenizerArguments
from electra_hf.training.checkpoints import check_writable, checkpoint_to_resume, set_results_aside
from electra_hf.training.identity import describe_data
from electra_hf.training.lock import lock_output_dir
from electra_hf.training.ranks import check_agreement, common_settings, in_turns, share_output_dir, together
from electra_hf.training.stopping import CleanStop

ARGUMENTS = (RowsArguments, TokenizerArguments, ModelArguments, CardArguments, PretrainingArguments)


def main(corpus_args, tokenizer_args, model_args, card_args, training_args):
    # Processes, on one machine or several: all are told alike, one of each output_dir writes, and one prepares first
    check_agreement(lambda: common_settings(corpus_args, tokenizer_args, model_args, card_args, training_args))
    push, checkpoint = together(lambda: look_before_start(tokenizer_args, model_args, training_args))
    output_dir = Path(training_args.output_dir)
    rows_folder = in_turns(lambda: find_rows(corpus_args, tokenizer_args))
    share_output_dir(training_args)
    together(lambda: lock_output_dir(output_dir) if training_args.should_save else None)
    test_texts, report, tokenizer, train_rows, test_rows = in_turns(
        lambda: (
            prepare_rows(corpus_args, tokenizer_args, model_args, output_dir, checkpoint)
            if rows_folder is None
            # One process of a machine compares every byte.
            else open_rows(
                rows_folder, tokenizer_args, model_args, output_dir, checkpoint, training_args.local_process_index == 0
            )
        )
    )
    check_agreement(lambda: describe_data(report, tokenizer, train_rows, test_rows, checkpoint))
    # With fewer rows than one batch takes, nothing would be trained.
    check_rows(train_rows, training_args.train_batch_size * training_args.world_size)

    # Model: a small generator, and the discriminator that will be kept
    set_seed(training_args.seed)
    model = build_pair(model_args, tokenizer, tokenizer_args.max_length)

    # Training: everything random happens in the model's forward, on the device
    trainer = ElectraTrainer(
        model, training_args, train_dataset=train_rows, eval_dataset=test_rows, processing_class=tokenizer
    )
    trainer.check_start(checkpoint)  # a command that does not fit touches nothing of the run before
    if trainer.is_world_process_zero():
        # Results of an earlier run must not stand beside those of this one.
        if checkpoint is None:
            set_results_aside(output_dir)
        if test_texts is not None:
            report["tokenizer"] = measure_tokenizer(tokenizer, test_texts)
        write_json(output_dir / "corpus.json", report)
        save_recipe(
            output_dir / "recipe.yaml", corpus_args, tokenizer_args, model_args, card_args, training_args, push
        )
        print(format_report(report))
    training_args.tell_device()
    stop = CleanStop(training_args.max_train_hours)
    trainer.add_callback(stop)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    stop.exit_if_stopped()

    # Results: held-out metrics, curves, and two plain Hugging Face folders; the generator can be thrown away
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        metrics |= {name: value for name, value in result.metrics.items() if name.startswith("train_")}
        first_stage = training_args.generator_only_steps / trainer.state.global_step
        metrics["train_flops"] = train_flops(
            model.config, tokenizer_args.max_length, metrics["train_tokens"], first_stage
        )
        write_json(output_dir / "metrics.json", metrics)
        draw_curves(trainer.state.log_history, output_dir / "curves.png")
        model.save_discriminator(output_dir / "discriminator", tokenizer)
        repositories = {output_dir / "discriminator": push.discriminator_repo_id}
        if model.generator is not None:
            model.save_generator(output_dir / "generator", tokenizer)
            repositories[output_dir / "generator"] = push.generator_repo_id

        # Cards, and the Hub where it is asked for: whatever happens there, the results are on disk
        fill_discriminator_card(output_dir, push.discriminator_repo_id, push.generator_repo_id, **asdict(card_args))
        if model.generator is not None:
            fill_generator_card(output_dir, push.generator_repo_id, push.discriminator_repo_id, **asdict(card_args))
        push_results(repositories, push)


def look_before_start(tokenizer_args, model_args, training_args):
    """Where to push, and the checkpoint to go on from. A wrong command is reported here, before hours of work."""
    push = take_push_settings(training_args)
    check_writable(training_args.output_dir)
    check_published(model_args)
    tokenizer_args.check_existing(existing_tokenizer(tokenizer_args, model_args))
    return push, checkpoint_to_resume(training_args.output_dir, training_args.resume_from_checkpoint)


def find_rows(corpus_args, tokenizer_args):
    """The folder of shards, whose settings are then the run's; None where the corpus is raw text."""
    folder = None
    if corpus_args.packed_rows:
        folder = find_packed_rows(corpus_args.packed_rows, corpus_args.data_cache_dir)
        adopt_settings(read_manifest(folder), corpus_args, tokenizer_args)
    # Checked only now, since with shards it is their test_share that counts.
    if not corpus_args.test_share:
        raise InputError("test_share: 0 holds out nothing to measure on. Give a small share, such as 0.01.")
    return folder


def existing_tokenizer(tokenizer_args, model_args):
    """The tokenizer that is named, or that of a published discriminator; None where one is to be trained."""
    return tokenizer_args.tokenizer_name_or_path or model_args.discriminator_name_or_path


def prepare_rows(corpus_args, tokenizer_args, model_args, output_dir, checkpoint):
    """From raw text: the texts held out, the report, the tokenizer, rows to train on and rows to measure on."""
    existing = existing_tokenizer(tokenizer_args, model_args)

    # Corpus: every source cleaned, merged, deduplicated, split by a hash of the content
    corpus, report = load_corpus(corpus_args)

    # Tokenizer: trained once on the training part, or a copy of an existing one; it stays with the checkpoints
    tokenizer = prepare_tokenizer(
        output_dir / "tokenizer",
        corpus["train"],
        tokenizer_args.training_settings(),
        tokenizer_args.max_length,
        existing=existing,
        checkpoint=checkpoint,
    )

    # Rows: sentences joined with [SEP] and cut to exactly max_length, without padding
    train_rows = pack_dataset(corpus["train"], tokenizer, tokenizer_args.max_length, corpus_args.data_cache_dir)
    test_rows = pack_dataset(corpus["test"], tokenizer, tokenizer_args.max_length, corpus_args.data_cache_dir)
    return corpus["test"], report, tokenizer, train_rows, test_rows


def open_rows(rows_folder, tokenizer_args, model_args, output_dir, checkpoint, verify):
    """From a folder of shards: the same, without texts."""
    packed = open_packed_rows(rows_folder, verify)
    # A command may name the tokenizer that the rows have, and no other one.
    check_tokenizer(packed.manifest, existing_tokenizer(tokenizer_args, model_args))
    tokenizer = prepare_tokenizer(
        output_dir / "tokenizer",
        None,
        {},
        tokenizer_args.max_length,
        existing=str(rows_folder / "tokenizer"),
        checkpoint=checkpoint,
    )
    return None, packed.report, tokenizer, packed.train, packed.test


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)
