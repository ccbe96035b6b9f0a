"""What tests share, and the scripts that they start: sizes of the tiny pair, its rows, and draws by the row alone.

It is no part of conftest.py, because each folder of tests may have a file of that name.
"""

import socket
import subprocess
import sys

import pyarrow as pa
import torch

VOCAB_SIZE = 40
LENGTH = 16


def packed(ids):
    """Rows of ids as the trainer takes them."""
    from electra_hf.text.packing import PackedRows

    return PackedRows.from_array(ids.numpy().astype("uint16"))


def sharded(ids, folder, sizes):
    """The same rows in Arrow files of so many rows each, as a folder of shards has them."""
    from datasets import concatenate_datasets

    from electra_hf.text.packed_rows import ShardedRows
    from electra_hf.text.prepared import read_arrow

    shards = []
    for number, part in enumerate(ids.split(sizes)):
        table, path = packed(part).dataset.data.table, folder / f"{number}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        shards.append(read_arrow(path, path.name))
    return ShardedRows(concatenate_datasets(shards))


def save_discriminator(folder, texts, vocab_size, length, num_hidden_layers=1):
    """Save a random discriminator of some thousand parameters with a tokenizer of its own, trained on the texts."""
    from transformers import ElectraConfig, ElectraForPreTraining

    from electra_hf.text.tokenization import save_tokenizer, train_tokenizer

    tokenizer = train_tokenizer(texts, vocab_size=vocab_size, model_max_length=length)
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=len(tokenizer), embedding_size=16, hidden_size=32, num_hidden_layers=num_hidden_layers,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=length, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.1,
    )  # fmt: skip
    ElectraForPreTraining(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def make_packed_rows(folder, texts, tasks=2, vocab_size=128, max_length=16):
    """Prepare a finished folder of shards from the texts, which are written beside it."""
    from electra_hf.text.corpus import CorpusArguments
    from electra_hf.text.packed_rows import seal
    from electra_hf.text.shard_job import ShardArguments, begin, plan_job
    from electra_hf.text.stages import STAGES, run_task, stages_of

    corpus = folder.with_name(f"{folder.name}.txt")
    corpus.write_text("\n".join(texts), encoding="utf-8")
    vocabulary = {"vocab_size": vocab_size, "tokenizer_type": "wordpiece", "lowercase": False}
    arguments = CorpusArguments([str(corpus)], test_share=0.1)
    job = plan_job(ShardArguments(str(folder), tasks=tasks), arguments, vocabulary, max_length)
    begin(job)
    for name in stages_of(job):
        for task in range(STAGES[name].tasks(job)):
            run_task(job, name, task)
    seal(job)
    return folder


def by_row(size, device=None):
    """In place of `torch.rand`: draws that depend on the row alone, so that a batch and its parts see the same."""
    return torch.full(size, 0.5) if size[-1] == 1 else torch.linspace(0, 0.999, size[-1]).expand(size)


def torchrun(script, *arguments, processes=2, timeout=300):
    """Run a script on several processes of this machine, as `torchrun` does; where it fails, what it said is told."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *start, str(script), *map(str, arguments)]
    end = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    assert end.returncode == 0, end.stdout[-20_000:]
    return end.stdout


def launch_machines(folders, script, *arguments, processes=1, own_arguments=None, timeout=300):
    """Start one launcher in each of `folders`, as on so many machines, and wait; their output and exit codes.

    `own_arguments`: what the launcher of each machine gets besides.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []
    for rank, folder in enumerate(folders):
        start = ["--nnodes", len(folders), "--node_rank", rank, "--nproc_per_node", processes]
        start += ["--master_addr", "127.0.0.1", "--master_port", port]
        own = own_arguments[rank] if own_arguments else []
        command = [sys.executable, "-m", "torch.distributed.run", *start, script, *arguments, *own]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        machines.append(subprocess.Popen([*map(str, command)], cwd=folder, **pipes))
    try:
        outputs = [machine.communicate(timeout=timeout)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    return outputs, [machine.returncode for machine in machines]
