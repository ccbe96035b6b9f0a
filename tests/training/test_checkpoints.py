import errno
import json
import resource
import shutil
from pathlib import Path

import pytest
from transformers import TrainerCallback

from electra_hf.errors import InputError
from electra_hf.training.checkpoints import (
    MANIFEST,
    WRITTEN,
    check_writable,
    checkpoint_to_resume,
    clear_way,
    find_damage,
    find_last_checkpoint,
    has_manifest,
    mark_written,
    rotate,
    sorted_checkpoints,
    write_manifest,
)

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def make_checkpoint(tmp_path):
    def make(step, sealed=True):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in FILES:
            (folder / name).write_text(f"{name} at {step}")
        if sealed:
            write_manifest(folder)
        return folder

    return make


def test_the_newest_is_the_one_of_the_highest_step_not_of_the_last_letter(make_checkpoint, tmp_path):
    for step in (9, 10, 100):
        make_checkpoint(step)
    assert find_last_checkpoint(tmp_path).name == "checkpoint-100"


def test_a_save_that_did_not_finish_does_not_count(make_checkpoint, tmp_path, caplog):
    make_checkpoint(1)
    make_checkpoint(2, sealed=False)
    assert find_last_checkpoint(tmp_path).name == "checkpoint-1"
    assert "checkpoint-2 is not used: manifest.json is missing: the save did not finish" in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_named(make_checkpoint, name):
    folder = make_checkpoint(1)
    content = (folder / name).read_bytes()
    flipped = bytes([content[0] ^ 1]) + content[1:]
    for damaged, words in (
        (flipped, f"{name} has changed since it was written"),
        (content[:-1], f"{name} has {len(content) - 1} bytes instead of {len(content)}"),
        (None, f"{name} is missing"),
    ):
        (folder / name).unlink()
        if damaged is not None:
            (folder / name).write_bytes(damaged)
        assert find_damage(folder) == words
        (folder / name).write_bytes(content)
    assert find_damage(folder) is None


def test_an_extra_file_is_named(make_checkpoint):
    folder = make_checkpoint(1)
    (folder / "more.bin").touch()
    assert find_damage(folder) == "more.bin does not belong to it"


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"model.safetensors": 1}', "\x00"])
def test_a_damaged_manifest_is_named(make_checkpoint, manifest):
    folder = make_checkpoint(1)
    (folder / MANIFEST).write_text(manifest)
    assert find_damage(folder)


def test_a_manifest_that_names_too_little_is_not_enough(make_checkpoint):
    folder = make_checkpoint(1)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["optimizer.pt"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert find_damage(folder) == "optimizer.pt does not belong to it"


def test_rotation_keeps_the_newest_complete_ones_and_clears_what_a_killed_save_left(make_checkpoint, tmp_path):
    for step in (1, 2, 3):
        make_checkpoint(step)
    make_checkpoint(4, sealed=False)
    rotate(tmp_path, 2)
    assert [folder.name for folder in sorted_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]


def test_what_is_newer_than_the_start_is_set_aside_and_does_not_push_out_what_this_run_saves(
    make_checkpoint, tmp_path
):
    make_checkpoint(1)
    newer = make_checkpoint(9)
    make_checkpoint(3, sealed=False)
    (newer / "optimizer.pt").write_text("damaged")
    assert find_last_checkpoint(tmp_path).name == "checkpoint-1"
    clear_way(tmp_path, 1)
    make_checkpoint(2)
    rotate(tmp_path, 1)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-9.aside"]


def test_a_rotation_that_a_killed_run_did_not_come_to_is_made_good_at_the_next_start(make_trainer):
    make_trainer(max_steps=2, save_steps=1).train()
    again = make_trainer(max_steps=2, save_steps=1, save_total_limit=1)
    again.train(find_last_checkpoint(again.args.output_dir))
    assert [folder.name for folder in sorted_checkpoints(again.args.output_dir)] == ["checkpoint-2"]


def test_damage_to_any_file_of_a_real_checkpoint_is_named_and_the_one_before_it_is_used(make_trainer, caplog):
    trainer = make_trainer(max_steps=2, save_steps=1)
    trainer.train()
    output_dir = Path(trainer.args.output_dir)
    newest = output_dir / "checkpoint-2"
    files = sorted(path.name for path in newest.iterdir())
    assert {MANIFEST, "run.json", "totals_0.safetensors", "rng_state.pth", "training_args.bin"} < set(files)

    def expect_named(name):
        caplog.clear()
        assert find_last_checkpoint(output_dir).name == "checkpoint-1"
        assert f"checkpoint-2 is not used: {name} " in caplog.text

    for name in files:
        content = (newest / name).read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damaged in (flipped, content[:middle], None):
            (newest / name).unlink()
            if damaged is not None:
                (newest / name).write_bytes(damaged)
            # A bit of the manifest stands for a file's name, size or hash: then that file no longer fits it.
            if name == MANIFEST and damaged == flipped:
                assert find_last_checkpoint(output_dir).name == "checkpoint-1"
            else:
                expect_named(name)
            (newest / name).write_bytes(content)
    (newest / "extra.bin").touch()
    expect_named("extra.bin")
    (newest / "extra.bin").unlink()
    assert find_last_checkpoint(output_dir) == newest


def test_the_last_complete_one_stays(make_checkpoint, tmp_path):
    make_checkpoint(1)
    make_checkpoint(2, sealed=False)
    rotate(tmp_path, 1)
    assert [folder.name for folder in sorted_checkpoints(tmp_path)] == ["checkpoint-1"]


def test_auto_starts_afresh_where_there_is_nothing_and_never_ignores_what_there_is(make_checkpoint, tmp_path):
    assert checkpoint_to_resume(tmp_path, "auto") is None
    folder = make_checkpoint(1)
    assert checkpoint_to_resume(tmp_path, "auto") == str(folder)
    assert checkpoint_to_resume(tmp_path, "never") is None
    assert checkpoint_to_resume(tmp_path, str(folder)) == str(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="is no complete checkpoint"):
        checkpoint_to_resume(tmp_path, str(folder))


def test_what_is_written_counts_before_it_is_sealed_and_is_sealed_at_the_next_start(make_checkpoint, tmp_path):
    make_checkpoint(1)
    written = make_checkpoint(2, sealed=False)
    half = make_checkpoint(3, sealed=False)
    mark_written(written)
    assert not has_manifest(written) and find_last_checkpoint(tmp_path) == written
    clear_way(tmp_path, 3)  # from a checkpoint-3 of another folder, say
    assert has_manifest(written) and not (written / WRITTEN).exists() and find_damage(written) is None
    assert not half.exists()


def test_what_was_written_before_the_machine_started_anew_counts_only_if_sealed(
    make_checkpoint, tmp_path, monkeypatch
):
    sealed, written = make_checkpoint(1), make_checkpoint(2, sealed=False)
    mark_written(written)
    (tmp_path / "boot").write_text("another start\n")
    monkeypatch.setattr("electra_hf.training.checkpoints._BOOT", tmp_path / "boot")
    assert find_damage(written) == "manifest.json is missing: the save did not finish"
    assert find_last_checkpoint(tmp_path) == sealed


def test_without_a_name_for_the_start_of_the_machine_only_the_seal_counts(make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("electra_hf.training.checkpoints._BOOT", tmp_path / "nowhere")
    written = make_checkpoint(1, sealed=False)
    mark_written(written)
    assert find_damage(written) == "manifest.json is missing: the save did not finish"


@pytest.mark.parametrize("name", FILES)
def test_what_is_cut_or_gone_is_named_before_the_seal_too(make_checkpoint, name):
    folder = make_checkpoint(1, sealed=False)
    mark_written(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    assert find_damage(folder) == f"{name} has {len(content) - 1} bytes instead of {len(content)}"
    (folder / name).unlink()
    assert find_damage(folder) == f"{name} is missing"
    (folder / name).write_bytes(content)
    (folder / "more.bin").touch()
    assert find_damage(folder) == "more.bin does not belong to it"


@pytest.mark.parametrize("mark", ["", "{", "[]", "{}", '{"boot": 1}'])
def test_a_damaged_mark_is_named(make_checkpoint, mark):
    folder = make_checkpoint(1, sealed=False)
    (folder / WRITTEN).write_text(mark)
    assert find_damage(folder)


def test_what_the_disk_would_not_take_does_not_count_as_written(make_checkpoint, monkeypatch):
    folder = make_checkpoint(1, sealed=False)
    mark_written(folder)

    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("electra_hf.training.checkpoints.os.fsync", refuse)
    with pytest.raises(OSError):
        write_manifest(folder)
    assert find_damage(folder) == "manifest.json is missing: the save did not finish"


@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run.json.tmp", "manifest.json.tmp"],
)
def test_a_disk_that_fills_up_during_a_save_is_one_message_and_the_run_goes_on_from_the_one_before(
    make_trainer, full_disk, name
):
    trainer = make_trainer(max_steps=4, save_steps=2)
    output_dir = Path(trainer.args.output_dir)

    class FullDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                trainer._wait_for_manifest()  # what follows the seal of checkpoint-2 would sweep the folder away
                (output_dir / "checkpoint-4").mkdir()
                (output_dir / "checkpoint-4" / name).symlink_to(full_disk)

    trainer.add_callback(FullDisk())
    with pytest.raises(InputError, match=r"No space left|inline_container|iostream") as error:
        trainer.train()
    assert "start the same command again: it goes on from checkpoint-2." in str(error.value)
    assert find_last_checkpoint(output_dir).name == "checkpoint-2"
    again = make_trainer(max_steps=4, save_steps=2)
    again.train(checkpoint_to_resume(output_dir, "auto"))
    assert find_last_checkpoint(output_dir).name == "checkpoint-4"


def test_a_file_system_that_takes_no_file_so_large_is_the_same_one_message(make_trainer):
    trainer = make_trainer(max_steps=4, save_steps=2)
    output_dir = Path(trainer.args.output_dir)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class LimitFiles(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                size = (output_dir / "checkpoint-2" / "optimizer.pt").stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))

    trainer.add_callback(LimitFiles())
    try:
        with pytest.raises(InputError, match="goes on from checkpoint-2"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert find_last_checkpoint(output_dir).name == "checkpoint-2"


def test_a_folder_that_cannot_be_written_is_refused_and_one_that_is_not_there_yet_is_not(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    check_writable(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match=f"output_dir: {tmp_path}/file cannot be written"):
        check_writable(tmp_path / "file" / "run")
    # Root may write into any folder, so a read-only one can only be played here.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match=f"output_dir: {tmp_path} cannot be written"):
        check_writable(tmp_path / "new" / "run")
