"""`recipes/push.py`: its exit codes, and the loop through a Hub by clients that know nothing of this package."""

import json
import os
import random
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from hub_client import OTHER_TOKEN, TOKEN, client_environment, files_that_hold
from hub_server import Hub
from transformers import AutoTokenizer, ElectraConfig, ElectraForPreTraining

from electra_hf.publish.cards import fill_discriminator_card
from electra_hf.text.tokenization import save_tokenizer, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PUSH = ROOT / "recipes" / "push.py"
SENTENCE = "La hundo kuras ĉiutage"
TAGGED = "La DET\nhundo NOUN\nkuras VERB\n\nMi PRON\nvidas VERB\nvin PRON\n\n" * 8


def make_run(output_dir, seed=0):
    """The folder of a pretraining run with a discriminator of random weights and its card."""
    tokenizer = train_tokenizer(["La hundo kuras .", "Mi vidas vin ĉiutage ."] * 20, vocab_size=128)
    size = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(seed)
    model = ElectraForPreTraining(ElectraConfig(vocab_size=len(tokenizer), intermediate_size=16, **size)).eval()
    model.save_pretrained(output_dir / "discriminator")
    save_tokenizer(tokenizer, output_dir / "discriminator")
    (output_dir / "metrics.json").write_text('{"eval_rtd_auc": 0.8}')
    fill_discriminator_card(output_dir)
    return output_dir / "discriminator"


def expect(output_dir):
    """A file with what the discriminator of a run says on this machine."""
    model = ElectraForPreTraining.from_pretrained(output_dir / "discriminator").eval()
    ids = AutoTokenizer.from_pretrained(output_dir / "discriminator")(SENTENCE, return_tensors="pt")["input_ids"]
    expected = {"ids": ids.tolist(), "logits": model(input_ids=ids).logits.tolist()}
    (output_dir / "expected.json").write_text(json.dumps(expected))
    return output_dir / "expected.json"


# Exit codes, in this process


def push(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["push.py", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PUSH), run_name="__main__")
    return ended.value.code


def test_a_folder_that_is_no_model_is_exit_code_2(monkeypatch, capsys, tmp_path):
    assert push(monkeypatch, "--folder", tmp_path, "--repo_id", "me/x") == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path} is not a model folder") and message.count("\n") == 1


def test_the_folder_of_a_whole_run_is_no_model_and_the_message_names_the_right_one(monkeypatch, capsys, tmp_path):
    make_run(tmp_path)
    assert push(monkeypatch, "--folder", tmp_path, "--repo_id", "me/x") == 2
    assert "discriminator/" in capsys.readouterr().err


def test_a_wrong_name_is_exit_code_2(monkeypatch, capsys, tmp_path):
    assert push(monkeypatch, "--folder", make_run(tmp_path), "--repo_id", "x") == 2
    assert "repo_id: expected user/name" in capsys.readouterr().err


def test_a_hub_that_is_out_of_reach_is_exit_code_3_with_the_command_to_push_again(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = make_run(tmp_path)
    flags = ["--folder", folder, "--repo_id", "me/x", "--public", "--revision", "b", "--tag", "v1"]
    assert push(monkeypatch, *flags) == 3
    message = capsys.readouterr().err
    assert message.endswith(f"  python recipes/push.py {' '.join(map(str, flags))}\n")
    assert TOKEN not in message


# The loop, each step in a process of its own


class Service:
    """A Hub, and clients that start with an empty cache each time unless told otherwise."""

    def __init__(self, place, xet):
        self.place, self.number = place, 0
        self.hub = Hub(place / "hub", {TOKEN: "me", OTHER_TOKEN: "stranger"}, xet=xet).start()

    def run(self, *command, token=TOKEN):
        self.number += 1
        environment = client_environment(self.hub, self.place / f"home-{self.number}", token)
        return subprocess.run(
            list(map(str, command)), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
        )

    def python(self, code, *arguments, token=TOKEN):
        return self.run(sys.executable, "-c", textwrap.dedent(code), *arguments, token=token)

    def check(self, *command):
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


# The upload is what differs; test_hub.py has each step of it in both ways.
@pytest.fixture(params=[pytest.param("lfs", marks=pytest.mark.sweep(0)), "xet"])
def service(request, tmp_path):
    service = Service(tmp_path / "service", xet=request.param == "xet")
    yield service
    service.hub.stop()


LOAD = """
import json, sys, torch
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer, ElectraForPreTraining
name, revision, expected = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
model = ElectraForPreTraining.from_pretrained(name, revision=revision).eval()
ids = torch.tensor(expected["ids"])
assert torch.allclose(model(input_ids=ids).logits, torch.tensor(expected["logits"]), atol=1e-5)
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
assert tokenizer("La hundo kuras ĉiutage")["input_ids"] == expected["ids"][0]
for auto_class in (AutoModel, AutoModelForTokenClassification):
    other = auto_class.from_pretrained(name, revision=revision)
    encoder = getattr(other, "electra", other).state_dict()
    for key, value in model.electra.state_dict().items():
        assert torch.equal(encoder[key], value), key
"""
TAG = """
import json, sys
from transformers import pipeline
tagger = pipeline("token-classification", model=sys.argv[1])
print(json.dumps([piece["entity"] for piece in tagger("La hundo kuras")]))
"""


NETWORK = "{num_hidden_layers: 1, hidden_size: 16, embedding_size: 8, num_attention_heads: 2}"
PRETRAIN = f"""
test_share: 0.2
vocab_size: 128
max_length: 16
discriminator: {NETWORK}
generator: {NETWORK}
max_steps: 2
warmup_steps: 1
save_strategy: "no"
per_device_train_batch_size: 8
use_cpu: true
disable_tqdm: true
push_to_hub: true
hub_model_id: me/tiny
"""


def pretrain(service, folder, seed):
    """Run pretrain.py as a user does who wants its results on the Hub; returns the ended process and output_dir."""
    words = "la knabo vidas belan hundon kaj ĉevalon sur ŝia ĝardeno".split()
    lines = [" ".join(random.Random(number).choices(words, k=8)) for number in range(200)]
    (folder / "corpus.txt").write_text("\n".join(lines))
    output_dir = folder / f"run-{seed}"
    places = f"output_dir: {output_dir}\ncorpus_files: [{folder}/corpus.txt]\ndata_cache_dir: {folder}/data\n"
    (folder / "pretrain.yaml").write_text(places + PRETRAIN)
    recipe = ROOT / "recipes" / "pretrain.py"
    return service.run(sys.executable, recipe, "--config", folder / "pretrain.yaml", "--seed", seed), output_dir


@pytest.mark.slow
@pytest.mark.timeout(600)  # a dozen processes, one after the other
def test_the_loop_through_the_recipes(service, tmp_path):
    """Pretrain, push, load, fine-tune from the Hub, push, tag; then a second revision whose push failed at first."""
    done, first = pretrain(service, tmp_path, seed=1)
    assert done.returncode == 0, done.stderr
    texts = [done.stdout, done.stderr]
    assert {name for _, name in service.hub.repositories} == {"me/tiny-discriminator", "me/tiny-generator"}
    assert all(repository.private for repository in service.hub.repositories.values())
    recipe = yaml.safe_load((first / "recipe.yaml").read_text())
    assert (recipe["push_to_hub"], recipe["hub_model_id"]) == (True, "me/tiny")
    for token in (None, OTHER_TOKEN):
        refused = service.python(LOAD, "me/tiny-discriminator", "main", expect(first), token=token)
        assert refused.returncode != 0 and "me/tiny-discriminator" in refused.stderr
    again = ["--folder", first / "discriminator", "--repo_id", "me/tiny-discriminator", "--tag", "v1"]
    assert "pushed and verified: http" in service.check(sys.executable, PUSH, *again)

    # A tagger, from the Hub to the Hub
    (tmp_path / "tagged.txt").write_text(TAGGED)
    tagger = tmp_path / "tagger"
    flags = f"--train_file {tmp_path}/tagged.txt --test_file {tmp_path}/tagged.txt --output_dir {tagger} --max_steps 2"
    flags += " --use_cpu --model_name_or_path me/tiny-discriminator --push_to_hub --hub_model_id me/tagger"
    texts.append(service.check(sys.executable, ROOT / "recipes" / "finetune_token_classification.py", *flags.split()))
    tags = json.loads(service.check(sys.executable, "-c", TAG, "me/tagger").splitlines()[-1])
    assert tags and set(tags) <= {"DET", "NOUN", "VERB", "PRON"}
    assert service.hub.repositories["models", "me/tagger"].private
    assert "base_model: me/tiny-discriminator" in (tagger / "README.md").read_text()

    # The Hub is down when the second run ends: its results are on disk, and the commands of the message push them
    service.hub.stop()
    done, second = pretrain(service, tmp_path, seed=2)
    service.hub.start()
    assert done.returncode == 3, done.stderr
    texts += [done.stdout, done.stderr]
    for name in ("metrics.json", "curves.png", "discriminator/README.md", "generator/model.safetensors"):
        assert (second / name).is_file(), name
    commands = re.findall(r"^  python (recipes/push.py .*)$", done.stderr, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        service.check(sys.executable, *shlex.split(command))
    for revision, run in (("main", second), ("v1", first)):
        service.check(sys.executable, "-c", LOAD, "me/tiny-discriminator", revision, expect(run))

    assert files_that_hold(TOKEN, tmp_path) == []
    assert not any(TOKEN in text for text in texts)
    assert not any("training_args" in request["path"] for request in service.hub.requests)


SHOW_CARD = """
import sys
from huggingface_hub import hf_hub_download
print(open(hf_hub_download(sys.argv[1], "README.md"), encoding="utf-8").read())
"""


@pytest.mark.slow
def test_the_lines_of_a_pushed_answerers_card_give_its_own_answer_from_the_hub(service, tmp_path):
    context = "La hundo kuras . " * 200 + "Mi vidas vin ĉiutage ."  # longer than a window
    answers = [{"text": "hundo", "answer_start": 3}]
    question = {"id": "q", "question": "Mi vidas vin ?", "answers": answers}
    squad = {"data": [{"title": "T", "paragraphs": [{"context": context, "qas": [question]}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    flags = f"--train_file {tmp_path}/squad.json --test_file {tmp_path}/squad.json --output_dir {tmp_path}/answerer"
    flags += f" --max_steps 2 --use_cpu --max_length 64 --model_name_or_path {make_run(tmp_path / 'run')}"
    service.check(sys.executable, ROOT / "recipes" / "finetune_question_answering.py", *flags.split())
    service.check(sys.executable, PUSH, "--folder", tmp_path / "answerer", "--repo_id", "me/answerer")
    card = service.check(sys.executable, "-c", SHOW_CARD, "me/answerer")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert code.count('from_pretrained("me/answerer")') == 2
    code = code.replace("Put a question here.", question["question"])
    code = code.replace("Put the text that answers it here.", context)
    printed = service.check(sys.executable, "-c", code).splitlines()[-1]
    assert printed == json.loads((tmp_path / "answerer" / "predictions.json").read_text())["q"] != ""


@pytest.mark.slow
def test_the_hf_command_sees_what_was_pushed(service, tmp_path):
    folder = make_run(tmp_path / "run")
    service.check(sys.executable, PUSH, "--folder", folder, "--repo_id", "me/eo-discriminator")
    hf = Path(sys.executable).parent / "hf"
    assert "me" in service.check(hf, "auth", "whoami")
    service.check(hf, "download", "me/eo-discriminator", "--local-dir", tmp_path / "copy")
    for path in folder.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()


JAVASCRIPT = """
import { createRepo, downloadFile, fileExists, listFiles, listCommits, uploadFile, whoAmI } from "@huggingface/hub";
const [hubUrl, accessToken] = process.argv.slice(2);
const repo = "me/eo-discriminator", common = { repo, hubUrl, accessToken };
const files = {};
for await (const file of listFiles(common)) files[file.path] = file.lfs?.oid ?? file.oid;
const card = await (await downloadFile({ ...common, path: "README.md" })).text();
const weights = (await (await downloadFile({ ...common, path: "model.safetensors" })).arrayBuffer()).byteLength;
let refused = null;
try { for await (const file of listFiles({ repo, hubUrl })) {} } catch (error) { refused = error.statusCode; }
await uploadFile({ ...common, file: { path: "by_another_client.txt", content: new Blob(["hello"]) } });
const commits = [];
for await (const commit of listCommits(common)) commits.push(commit.title);
const user = (await whoAmI({ hubUrl, accessToken })).name;
const there = await fileExists({ ...common, path: "by_another_client.txt" });
console.log(JSON.stringify({ files, card, weights, refused, commits, user, there }));
"""


@pytest.mark.slow
def test_an_independent_client_in_javascript_agrees(tmp_path):
    """The judge of our server as much as of our push: written by others, in another language."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node and npm are not installed")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", tmp_path, "@huggingface/hub@2"]
    if subprocess.run(install, capture_output=True, timeout=120).returncode:
        pytest.skip("npm cannot install @huggingface/hub here")
    service = Service(tmp_path / "service", xet=False)
    folder = make_run(tmp_path / "run")
    service.check(sys.executable, PUSH, "--folder", folder, "--repo_id", "me/eo-discriminator")
    (tmp_path / "look.mjs").write_text(JAVASCRIPT)
    seen = json.loads(service.check("node", tmp_path / "look.mjs", service.hub.url, TOKEN))
    service.hub.stop()
    repository = service.hub.repositories["models", "me/eo-discriminator"]
    entries = repository.entries(repository.resolve("main"))
    there = {entry.path: entry.lfs or entry.oid for entry in entries if entry.path != "by_another_client.txt"}
    assert seen["files"] == there
    assert seen["card"] == (folder / "README.md").read_text()
    assert seen["weights"] == (folder / "model.safetensors").stat().st_size
    assert seen["refused"] in (401, 404)
    assert (seen["user"], seen["there"], len(seen["commits"])) == ("me", True, 3)


OLD_LOAD = """
import transformers
assert transformers.__version__.startswith("4.57"), transformers.__version__
"""


@pytest.mark.slow
def test_the_same_folder_loads_in_transformers_4_57(tmp_path):
    folder = make_run(tmp_path / "run")
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "transformers==4.57.6"]
    if subprocess.run(install, capture_output=True, timeout=200).returncode:
        pytest.skip("pip cannot install transformers 4.57.6 here")
    # Its own transformers, tokenizers and huggingface_hub come first on the path; torch is lent by this environment.
    site = next((environment / "lib").glob("python*/site-packages"))
    (site / "torch_of_the_other.pth").write_text(str(Path(torch.__file__).parent.parent))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [python, "-c", OLD_LOAD + LOAD, folder, "main", expect(tmp_path / "run")],
        env={**kept, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
