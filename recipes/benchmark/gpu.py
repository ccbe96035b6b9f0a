"""Pretraining on a GPU: is it right there, how fast is it, how much memory does it take, and where does the time go?
A quarter of an hour, no network.

python recipes/benchmark/gpu.py        (or: make benchmark-gpu); without a GPU it measures the CPU in the same way.
It leaves gpu.json and gpu.md, a table for SPEED.md, in output_dir.
"""

import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch._inductor.config
from transformers import TrainerCallback

from electra_hf import ElectraForPretraining, ElectraPretrainingConfig, ElectraTrainer, PretrainingArguments
from electra_hf.errors import InputError
from electra_hf.files import write_json, write_text
from electra_hf.model.flops import flops_per_token
from electra_hf.recipe import as_dict, run_recipe
from electra_hf.text.packing import PackedRows
from electra_hf.training.checkpoints import find_damage, find_last_checkpoint
from electra_hf.training.device import choose_precision
from electra_hf.training.stopping import CleanStop
from machine import describe_machine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WAYS = {
    "eager": {"torch_compile": False},
    "compiled": {"torch_compile": True},
    "apart": {"torch_compile": True},  # with a launch for each kernel (`combine_launches`)
    "graphs": {"torch_compile": True, "torch_compile_mode": "reduce-overhead"},  # records CUDA graphs
}


@dataclass
class GpuArguments:
    output_dir: str = field(default="outputs/benchmark_gpu", metadata={"help": "gpu.json, gpu.md and trial runs."})
    vocab_size: int = field(default=52_032, metadata={"help": "Entries of the embedding table."})
    max_length: int = field(default=128, metadata={"help": "Tokens of a row."})
    generator: dict | str | None = field(
        default_factory=lambda: {"num_hidden_layers": 3, "hidden_size": 256},
        metadata={"help": "ElectraConfig fields of the generator (default: the article's)."},
    )
    discriminator: dict | str | None = field(default=None, metadata={"help": "The same of the discriminator."})
    step_tokens: list[int] = field(
        # The middle one is the paper's: 128 rows of 128.
        default_factory=lambda: [4_096, 16_384, 65_536],
        metadata={"help": "Tokens a step."},
    )
    ways: list[str] = field(default_factory=lambda: list(WAYS), metadata={"help": f"Some of {', '.join(WAYS)}."})
    steps: int = field(default=30, metadata={"help": "Timed steps, after five that are not."})

    def __post_init__(self):
        self.generator, self.discriminator = (as_dict(n, getattr(self, n)) for n in ("generator", "discriminator"))
        for way in self.ways:
            if way not in WAYS:
                raise InputError(f"ways: expected some of {', '.join(WAYS)}, got {way}.")


def main(arguments):
    folder = Path(arguments.output_dir)
    shutil.rmtree(folder, ignore_errors=True)  # the trial runs of the time before
    # The parts are tried one by one (`attempt`), so that a failure does not lose the other results.
    precision = choose_precision(DEVICE == "cpu")
    report = {"machine": describe_machine(), "precision": precision, "settings": asdict(arguments)}
    report["checks"] = {name: attempt(check, arguments, folder) for name, check in CHECKS.items()}
    report["products_per_second"] = measure_products()
    report["rows"] = [
        {"tokens": tokens, "way": way} | attempt(measure_way, arguments, folder, way, tokens)
        for tokens in arguments.step_tokens
        for way in arguments.ways
    ]
    operations = flops_per_token(make_model(arguments).config, arguments.max_length)  # of a token
    for row in report["rows"]:
        # Of what the device reaches where it does nothing but multiply large matrices.
        row["share"] = row.get("tokens_per_second", 0.0) * operations / report["products_per_second"]
    report["profile"] = attempt(profile, arguments, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "gpu.json", report)
    write_text(folder / "gpu.md", format_report(report))
    print(format_report(report))


def attempt(function, *arguments):
    """The result of a measurement, or the error that it raised: a card or a version may lack something."""
    try:
        return function(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def make_model(arguments):
    torch.manual_seed(0)  # the checks compare models, which have to begin with equal weights
    networks = {"generator": arguments.generator, "discriminator": arguments.discriminator}
    return ElectraForPretraining(
        ElectraPretrainingConfig.from_size("small", vocab_size=arguments.vocab_size, **networks)
    )


def make_trainer(arguments, folder, tokens, callbacks=(), trainer_class=ElectraTrainer, **settings):
    """A run on random rows: a step takes the same time whatever the tokens are."""
    # From 5 on: 0 to 4 are the special tokens, which are not selected ([UNK] aside).
    batch = max(1, tokens // arguments.max_length)
    chance = torch.Generator().manual_seed(0)  # the same rows for a run and its resume
    ids = torch.randint(5, arguments.vocab_size, (batch * 64, arguments.max_length), generator=chance)
    # No logs and no checkpoints: both would wait for the device within the timed steps.
    defaults = {"warmup_steps": 1, "logging_steps": 100_000, "save_strategy": "no", "torch_compile": False}
    training = PretrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        **{**defaults, **settings},
        use_cpu=DEVICE == "cpu",
        disable_tqdm=True,
        report_to="none",
    )
    trainer = trainer_class(
        make_model(arguments), training, train_dataset=PackedRows.from_array(ids.numpy().astype("uint32"))
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


class Clock(TrainerCallback):
    """When the device has ended the first step, the fifth and the last one."""

    def __init__(self):
        self.start, self.moments = time.perf_counter(), {}

    def on_step_end(self, args, state, control, **kwargs):
        # A GPU runs behind its program: without waiting for it only the starts of its kernels would be timed.
        if state.global_step in (1, 5, state.max_steps):
            synchronize()
            self.moments[state.global_step] = time.perf_counter()


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure_way(arguments, folder, way, tokens):
    """Tokens per second, peak memory in bytes, and seconds to the first step, compilation included."""
    # Forget the way that was timed before: its compiled code and its peak of memory would count here.
    torch._dynamo.reset()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock, last = Clock(), 5 + arguments.steps
    trainer = make_trainer(arguments, folder / "timed", tokens, [clock], max_steps=last, **WAYS[way])
    if way == "apart":
        torch._inductor.config.combo_kernels = False  # the next trainer that compiles sets it again
    trainer.train()
    done = trainer._tokens_per_step() * arguments.steps
    return {
        "tokens_per_second": done / (clock.moments[last] - clock.moments[5]),
        "seconds_to_first_step": clock.moments[1] - clock.start,
        "peak_memory": torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None,
    }


def measure_products():
    """Operations per second of large products in the precision that a run would take."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[choose_precision(DEVICE == "cpu")]
    # So large that the start of a product does not count; on a CPU, so small that it takes no minute.
    size = 8192 if DEVICE == "cuda" else 512
    left, right = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    for number in (3, 20):  # the first few are not timed
        synchronize()
        start = time.perf_counter()
        for _ in range(number):
            left @ right
        synchronize()
    # A product of two (n, n) matrices is n**3 multiplications and as many additions.
    return 20 * 2 * size**3 / (time.perf_counter() - start)


@torch.no_grad()
def check_against_cpu(arguments, folder):
    """The largest difference of the networks' outputs from the CPU's, in fp32, beside their size."""
    model = make_model(arguments).eval()
    ids = torch.randint(5, arguments.vocab_size, (4, arguments.max_length))
    here = [network(ids).logits for network in (model.generator, model.discriminator)]
    model.to(DEVICE)
    there = [network(ids.to(DEVICE)).logits.cpu() for network in (model.generator, model.discriminator)]
    difference = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(here, there, strict=True))
    # TF32 keeps 10 bits of a factor, about three digits; a wrong kernel is further off than that.
    return {"largest relative difference": difference, "passed": difference < 1e-2}


def check_resume(arguments, folder):
    """How far the weights of a run resumed in the middle are from those of the run that never stopped, 0 at best."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(arguments, folder / "resume", arguments.max_length * 4, **settings)
    whole.train()
    resumed = make_trainer(arguments, folder / "resume", arguments.max_length * 4, **settings)
    resumed.train(str(folder / "resume" / "checkpoint-3"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    # 0.0 on a CPU, as the test of this file asks. A GPU may add in another order the second time.
    return {"largest difference of a weight": difference, "passed": difference < 1e-3}


class _Broken(ElectraTrainer):
    """Its second step has no finite loss."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        return loss * float("nan") if self.state.global_step == 1 else loss


def check_broken_step(arguments, folder):
    """A step without a finite loss leaves the weights finite, and is counted."""
    trainer = make_trainer(arguments, folder / "broken", arguments.max_length * 4, trainer_class=_Broken, max_steps=3)
    trainer.train()
    return {"skipped": int(trainer._skipped_steps), "passed": int(trainer._skipped_steps) == 1}


class _Signal(TrainerCallback):
    """Stops the run after its second step, as Slurm or a cloud does."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def check_stop(arguments, folder):
    """A signal ends a run in a complete checkpoint; the seconds that the save keeps the steps waiting."""
    stop = CleanStop()
    trainer = make_trainer(arguments, folder / "stop", arguments.max_length * 4, [stop, _Signal()], max_steps=1000)
    save, seconds = trainer._save_checkpoint, []

    def timed(*args):
        synchronize()  # else the rest of the step would count as saving
        start = time.perf_counter()
        save(*args)
        seconds.append(time.perf_counter() - start)

    trainer._save_checkpoint = timed
    trainer.train()
    checkpoint = find_last_checkpoint(folder / "stop")
    passed = trainer.state.global_step < 10 and checkpoint is not None and find_damage(checkpoint) is None
    return {"stall of a save, seconds": max(seconds, default=float("nan")), "passed": passed}


CHECKS = {
    "outputs as on the CPU": check_against_cpu,
    "resume": check_resume,
    "broken step": check_broken_step,
    "stop and checkpoint": check_stop,
}


def profile(arguments, folder):
    """The ten operations of a step in which the device spends most time, in milliseconds of five steps."""
    tokens = arguments.step_tokens[0]
    trainer = make_trainer(arguments, folder / "profile", tokens, max_steps=5)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        trainer.train()
    # "self": without the operations called inside, which have rows of their own.
    of = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    longest = sorted(seen.key_averages(), key=lambda event: getattr(event, of), reverse=True)[:10]
    return {event.key: getattr(event, of) / 1e3 for event in longest}


def format_report(report: dict) -> str:
    """The report as Markdown, for SPEED.md."""
    machine = report["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    lines = [
        f"{device}, {report['precision']}, PyTorch {machine['torch']}\n",
        "| tokens a step | way | tokens/s | of the products' rate | peak memory | first step |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if "error" in row:
            lines.append(f"| {row['tokens']:,} | {row['way']} | {row['error']} | | | |")
            continue
        memory = f"{row['peak_memory'] / 2**30:.1f} GiB" if row["peak_memory"] else "not measured"
        lines.append(
            f"| {row['tokens']:,} | {row['way']} | {row['tokens_per_second']:,.0f} | {row['share']:.0%} | {memory} | "
            f"{row['seconds_to_first_step']:.1f} s |"
        )
    lines += ["", "| check | |", "|---|---|"]
    for name, result in report["checks"].items():
        lines.append(f"| {name} | {', '.join(f'{key}: {value}' for key, value in result.items())} |")
    lines += ["", "| longest operations | ms in five steps |", "|---|---|"]
    for name, value in report["profile"].items():
        lines.append(f"| {name[:80]} | {value if isinstance(value, str) else f'{value:.2f}'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_recipe(main, GpuArguments)
