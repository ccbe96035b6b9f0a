"""What a person sees of a run."""

import pytest
from tiny import packed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from electra_hf import ElectraTrainer, PretrainingArguments
from electra_hf.training.progress import PlainProgress, format_log


def test_a_log_is_one_line_with_the_numbers_that_matter():
    logs = {"loss": 20.5, "grad_norm": 3.0, "generator_loss": 4.5678, "discriminator_loss": 0.45678, "rtd_auc": 0.65}
    line = format_log(logs | {"tokens_per_second": 12_345.6, "rtd_recall": 0.1}, 1_200)
    assert line.split() == (
        "step 1,200 generator loss 4.568 discriminator loss 0.4568 AUC 0.650 tokens/s 12,346".split()
    )


def test_a_log_of_held_out_text_says_so_and_has_the_rank():
    line = format_log({"eval_generator_loss": 4.5, "eval_discriminator_loss": 0.4, "eval_effective_rank": 31.26}, 5)
    assert line.split() == "held out generator loss 4.500 discriminator loss 0.4000 effective rank 31.3".split()


def test_a_log_of_fine_tuning_has_its_loss_and_a_summary_of_the_run_is_no_line():
    assert format_log({"loss": 1.5, "learning_rate": 1e-3, "epoch": 2.0}, 40).split()[:4] == [
        "step",
        "40",
        "loss",
        "1.5000",
    ]
    assert format_log({"train_runtime": 3.0, "epoch": 2.0}, 40) == format_log({}, 1) == ""


@pytest.mark.parametrize("disable_tqdm", [False, True])
@pytest.mark.parametrize("log_level", ["passive", "info", "error"])
def test_quiet_runs_print_lines_and_all_others_what_the_trainer_prints(
    tiny_model, rows, tmp_path, capsys, log_level, disable_tqdm
):
    arguments = PretrainingArguments(
        str(tmp_path),
        **{"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 8, "warmup_steps": 0},
        **{"save_strategy": "no", "use_cpu": True, "log_level": log_level, "disable_tqdm": disable_tqdm},
    )
    trainer = ElectraTrainer(
        tiny_model(), arguments, train_dataset=packed(rows(16)), eval_dataset=packed(rows(8, seed=9))
    )
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    is_plain = log_level == "error"
    assert (PlainProgress in kinds) == is_plain
    assert bool(kinds & {ProgressCallback, PrinterCallback}) == (not is_plain)
    trainer.train()
    trainer.evaluate()
    printed = capsys.readouterr()
    assert ("{'" in printed.out + printed.err) == (not is_plain)
    assert ("effective rank" in printed.out) == is_plain
    assert ("it/s" in printed.err or "s/it" in printed.err) == (not disable_tqdm)
