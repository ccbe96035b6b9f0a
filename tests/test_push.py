"""`recipes/push.py`: its exit codes, and the loop through a Hub by clients that know nothing of this package."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hub_client import OTHER_TOKEN, TOKEN, client_environment
from hub_server import Hub
from transformers import ElectraConfig, ElectraForPreTraining

from electra_hf.cards import fill_discriminator_card
from electra_hf.tokenization import save_tokenizer, train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PUSH = ROOT / "recipes" / "push.py"
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
    ids = tokenizer("La hundo kuras ĉiutage", return_tensors="pt")["input_ids"]
    expected = {"ids": ids.tolist(), "logits": model(input_ids=ids).logits.tolist()}
    (output_dir / "expected.json").write_text(json.dumps(expected))
    return output_dir / "discriminator"


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


@pytest.fixture(params=["lfs", "xet"])
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


@pytest.mark.slow
def test_the_loop_from_a_push_to_a_tagger_from_the_hub(service, tmp_path):
    first = make_run(tmp_path / "first")
    pushed = service.check(sys.executable, PUSH, "--folder", first, "--repo_id", "me/eo-discriminator", "--tag", "v1")
    assert "pushed and verified: http" in pushed
    for token in (None, OTHER_TOKEN):
        refused = service.python(LOAD, "me/eo-discriminator", "main", tmp_path / "first/expected.json", token=token)
        assert refused.returncode != 0 and "me/eo-discriminator" in refused.stderr
    second = make_run(tmp_path / "second", seed=1)
    service.check(sys.executable, PUSH, "--folder", second, "--repo_id", "me/eo-discriminator")
    for revision, run in (("main", "second"), ("v1", "first")):
        service.check(sys.executable, "-c", LOAD, "me/eo-discriminator", revision, tmp_path / run / "expected.json")

    (tmp_path / "tagged.txt").write_text(TAGGED)
    tagger = tmp_path / "tagger"
    flags = f"--train_file {tmp_path}/tagged.txt --test_file {tmp_path}/tagged.txt --output_dir {tagger} --max_steps 2"
    recipe = ROOT / "recipes" / "finetune_token_classification.py"
    service.check(sys.executable, recipe, "--model_name_or_path", "me/eo-discriminator", *flags.split(), "--use_cpu")
    service.check(sys.executable, PUSH, "--folder", tagger, "--repo_id", "me/eo-tagger")
    tags = json.loads(service.check(sys.executable, "-c", TAG, "me/eo-tagger").splitlines()[-1])
    assert tags and set(tags) <= {"DET", "NOUN", "VERB", "PRON"}
    assert not any("training_args" in request["path"] for request in service.hub.requests)


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
        [python, "-c", OLD_LOAD + LOAD, folder, "main", tmp_path / "run" / "expected.json"],
        env={**kept, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
