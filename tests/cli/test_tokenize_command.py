"""The command that stores tokens, and others on stored tokens."""

import pytest

from command_line import run


@pytest.fixture
def partita(monkeypatch, capfd):
    return lambda *arguments: run(*arguments, monkeypatch=monkeypatch, capfd=capfd)


def test_a_run_is_tokenized_checked_trained_and_evaluated(partita, toy_recipe, tmp_path):
    run_folder, shards = tmp_path / "run", tmp_path / "shards"
    assert partita("train", toy_recipe, "-o", run_folder, "--no-report")[0] == 0
    status, text = partita("tokenize", run_folder, "-o", shards, "--versions", "2", "--workers", "1")
    assert status == 0, text
    assert "tokens: 32 readings of pieces to store" in text  # 8 pieces twice, and 8 in each of the other splits
    assert "tokens: stored in" in text
    status, text = partita("tokenize", run_folder, "-o", shards, "--versions", "2")
    assert (status, "is complete" in text) == (0, True)
    weights = [f"tokenizers.acoustic.weights={run_folder}/tokenizers/acoustic", "tokenizers.acoustic.fit=null"]
    data = f"data={{name: shards, path: {shards}}}"
    status, text = partita("check", toy_recipe, *weights, data, "--data")
    assert status == 0, text
    assert "nothing is damaged" in text
    status, text = partita("train", toy_recipe, *weights, data, "-o", tmp_path / "second")
    assert status == 0, text
    assert "stages/main: 8 steps" in text
    assert (tmp_path / "second" / "report.html").is_file()
    status, text = partita("generate", tmp_path / "second", "tone 3", "-o", tmp_path / "out.wav")
    assert status == 0, text
    status, text = partita("evaluate", tmp_path / "second")
    assert status == 2
    assert "an evaluation compares audio: name the data with the audio" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--output"),
        (["-o", "x", "--node-rank", "1"], "--node-rank and --num-nodes belong together"),
        (["-o", "x", "--node-rank", "0", "--num-nodes", "0"], "--num-nodes must be at least 1, not 0"),
        (["-o", "x", "--node-rank", "4", "--num-nodes", "4"], "tokenizers/acoustic has no weights"),
        (["-o", "x", "--versions", "0"], "versions must be between 1 and 10,000, not 0"),
        (["-o", "x", "--longest", "nan"], "longest must be between 1 and 36,000"),
        (["-o", "x", "--workers", "-1"], "--workers must be 0 or more, not -1"),
        (["-o", "x"], "tokenizers/acoustic has no weights"),
        (["-o", "x", "data=nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_one_message(partita, toy_recipe, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, text = partita("tokenize", toy_recipe, *arguments)
    assert status == 2
    assert words in text
    assert "Traceback" not in text
    assert not (tmp_path / "x").exists()


def test_check_says_that_tokens_are_stored(partita, toy_recipe):
    status, text = partita("check", toy_recipe, "tokens.versions=3")
    assert status == 0
    assert "tokens: stored before the stages are trained, 3 readings of each training piece" in text
    assert "tokens: stored before" not in partita("check", toy_recipe)[1]


def test_an_incomplete_folder_is_reported_by_check(partita, toy_recipe, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "plan.json").write_text("{}")
    status, text = partita("check", toy_recipe, f"data={{name: shards, path: {tmp_path / 'half'}}}")
    assert status == 2
    assert "data.path" in text
    assert "is incomplete: run the same `partita tokenize` command again" in text
