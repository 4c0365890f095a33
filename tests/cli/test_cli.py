import os
import signal
import subprocess
import sys
import time

import pytest
import soundfile

import toys  # noqa: F401  (registers the parts)
from command_line import run
from partita.cli import list_parts as catalog


@pytest.fixture
def partita(monkeypatch, capfd):
    return lambda *arguments: run(*arguments, monkeypatch=monkeypatch, capfd=capfd)


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "tokenizer"]])
def test_help_and_list_import_no_torch(arguments):
    script = f"""
import sys
from partita.cli.main import main
sys.argv = ["partita", *{arguments!r}]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
assert "torch" not in sys.modules and "lightning" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_list_names_recipes_parts_and_presets(partita):
    status, text = partita("list")
    assert status == 0
    for name in ("chorales-tiny", "tokenizer/codec", "tokenizer/spectral-tiny", "conditioner/t5", "data/corpus"):
        assert name in text


def test_list_describes_the_arguments_of_a_part(partita):
    status, text = partita("list", "tokenizer/toy-codec")
    assert status == 0
    assert "cardinality" in text
    assert "Samples per frame." in text
    assert "100" in text


def test_list_describes_what_fills_the_slots_of_a_preset(partita):
    status, text = partita("list", "tokenizer/soundstream-48khz-stereo")
    assert status == 0
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "a bottleneck" in rows["bottleneck"]
    assert "rvq" in rows["bottleneck"]
    assert "16" in rows["bottleneck.num_codebooks"]
    assert "multi-scale" in rows["discriminator"]
    assert "an autoencoder" in rows["autoencoder"]


def test_list_keeps_what_groups_of_arguments_mean_in_the_same_column(partita):
    status, text = partita("list", "tokenizer/codec")
    assert status == 0
    columns = [
        next(line.index(meaning) for line in text.splitlines() if line.split()[:1] == [name] and meaning in line)
        for name, meaning in (("losses.spectral", "Weight of the spectral"), ("channels", "Channels of the audio"))
    ]
    assert len(set(columns)) == 1


def test_list_says_where_a_component_goes(partita):
    assert partita("list", "memorization") == partita("list", "score/memorization")
    status, text = partita("list", "bottleneck/rvq")
    assert status == 0
    assert "bottleneck: rvq" in text
    assert "fit:" not in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["list", "tokenzier"], "'tokenizer'"),
        (["list", "tokenizer/soundstream-tiyn"], "'soundstream-tiny'"),
        (["list", "memorizatin"], "did you mean 'memorization'?"),
        (["list", "codec"], "codec is in several families: list tokenizer/codec or score/codec"),
        (["check", "chorale-tiny"], "'chorales-tiny'"),
        (["generate", "nowhere", "a prompt"], "neither a folder"),
        (["generate", "nowhere", "a prompt", "-o", "x.doc"], ".wav"),
        (["train", "chorales-tiny", "sed=1"], "'seed'"),
    ],
)
def test_a_users_mistake_is_one_message_and_status_2(partita, arguments, word):
    status, text = partita(*arguments)
    assert status == 2
    assert word in text
    assert "Traceback" not in text


def test_the_version_is_that_of_the_package(partita):
    import importlib.metadata

    assert partita("--version") == (0, f"partita {importlib.metadata.version('partita')}\n")


def test_from_recipe_to_sound(partita, toy_recipe, tmp_path):
    assert partita("check", toy_recipe)[0] == 0
    output = tmp_path / "run"
    status, text = partita("train", toy_recipe, "-o", output, "seed=5")
    assert status == 0, text
    assert text.rstrip().splitlines()[-1] == f"trained: {output}"  # when the report is there, too
    page = (output / "report.html").read_text()
    assert page.count("<audio") >= 4
    assert "data:image/png" in page
    status, text = partita(
        "generate", output, "tone 1", "tone 2", "-o", tmp_path / "clip.wav", "-d", "0.5", "--seed", "3"
    )
    assert status == 0, text
    for i in (1, 2):
        audio, rate = soundfile.read(tmp_path / f"clip-{i}.wav")
        assert (len(audio), rate) == (2000, 4000)
    story = ("tone 1", "--then", "1.5: tone 2", "-d", "3", "--negative", "tone 3", "-s", "temperature=0.5")
    status, text = partita("generate", output, *story, "-s", "main.temperature=0", "-o", tmp_path / "story.wav")
    assert status == 0, text
    assert soundfile.info(tmp_path / "story.wav").frames == 12000
    for wrong, word in (
        (["-d", "-1"], "more than 0 seconds"),
        (["--then", "flute"], "such as '20: flute'"),
        (["--then", "0: flute"], "increase"),
        (["-s", "temperature"], "key=value"),
        (["-s", "temprature=1"], "'temperature'"),
        (["-s", "other.temperature=1"], "no stage is called 'other'"),
        (["--then", "0.5: "], "such as '20: flute'"),
        (["--then", "9: tone 2", "-d", "3"], "set a longer duration"),
        (["--transition", "0.1"], "requires --then"),
    ):
        status, text = partita("generate", output, "tone 1", *wrong, "-o", tmp_path / "none.wav")
        assert (status, word in text) == (2, True), text


@pytest.mark.parametrize(
    ("where", "status", "word"),
    [("> /dev/full", 2, "the output cannot be written: the disk is full"), (">&-", 0, "")],
)
def test_an_output_that_takes_nothing_is_no_fault(where, status, word):
    script = f"{sys.executable} -c 'from partita.cli.main import main; main()' list {where}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, word in done.stderr, "Traceback" in done.stderr) == (status, True, False), done.stderr
    assert "Exception ignored" not in done.stderr


def test_ctrl_c_is_heard_while_python_tidies_up(partita, monkeypatch):
    """What a destructor or the callback of a weak reference raises is lost."""

    class Tidied:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)  # where the handler runs

    def long():
        Tidied()
        time.sleep(20)

    monkeypatch.setattr(catalog, "recipes", long)
    status, text = partita("list")
    assert (status, "stopped" in text, "Traceback" in text) == (130, True, False), text


def test_our_own_faults_are_status_1(partita, monkeypatch):
    monkeypatch.setattr(catalog, "recipes", lambda: 1 / 0)
    status, text = partita("list")
    assert status == 1
    assert "ZeroDivisionError" in text
    assert "report it" in text


def test_paths_that_cannot_be_used_are_one_message(partita, toy_recipe, tmp_path):
    (tmp_path / "file").touch()
    for command in (["ablate", toy_recipe], ["train", toy_recipe]):
        status, text = partita(*command, "-o", tmp_path / "file")
        assert status == 2
        assert "not a directory" in text.lower() or "is not" in text
        assert "Traceback" not in text


def test_an_ablation_from_the_command_line(partita, toy_recipe, tmp_path):
    arguments = ["ablate", toy_recipe, "stages.main.generator.width=16,8", "--clips", 2, "-o", tmp_path / "out"]
    status, text = partita(*arguments, "--dry-run")
    assert status == 0
    assert "2 variants, 2 runs: 3 parts to train (4 without sharing)" in text
    for options, word in (
        (["--cluster-option", "timeout_min=3"], "requires --cluster"),
        (["--cluster", "slurm", "--cluster-option", "x"], "takes key=value"),
        (["--budget", "steps"], "--budget takes"),
        (["--score", "fad={embeddings: [vggish]}"], "vggish has no weights"),
    ):
        status, text = partita(*arguments, *options)
        assert status == 2
        assert word in text


def test_check_and_train_say_which_files_are_missing(partita, toy_recipe, tmp_path):
    wrong = [f"tokenizers.acoustic={{name: toy-codec, weights: {tmp_path}/gone}}", "stages.main.window=-1", "sead=3"]
    for command in ("check", "train"):
        status, text = partita(command, toy_recipe, *wrong)
        assert (status, "3 mistakes" in text, f"no file or folder {tmp_path}/gone" in text) == (2, True, True), text


def test_check_estimates_the_training_on_hardware_that_is_not_there(partita):
    status, text = partita("check", "chorales-tiny", "--devices", "4", "--strategy", "fsdp2", "--hardware", "h100")
    assert status == 0
    assert "estimated for NVIDIA H100 SXM" in text
    status, text = partita("check", "chorales-tiny", "--strategy", "pipeline")
    assert status == 2
    assert "--strategy must be ddp or fsdp2, not 'pipeline'" in text
