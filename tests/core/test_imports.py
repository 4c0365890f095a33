"""Parts in a file of one's own, named by its user and never by a recipe."""

import sys

import pytest

import partita
from command_line import fork, run

PART = '''
from partita.core.registry import register
from toys import ToyCodec


@register("tokenizer", "NAME")
class Mine(ToyCodec):
    """A part of one's own."""
'''


def test_the_flag_makes_a_part_of_a_file_usable(tmp_path, monkeypatch, capfd):
    file, recipe = tmp_path / "flag_part.py", tmp_path / "recipe.yaml"
    file.write_text(PART.replace("NAME", "flag-part"))
    recipe.write_text("tokenizers: {acoustic: flag-part}\ndata: {name: toy-sines}\n")
    output = tmp_path / "output.txt"
    process = fork("--import", file, "check", recipe, output=output)  # so that it is not imported here
    process.join(300)
    process.kill()  # rather than wait for one that hangs
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert "flag-part" in output.read_text()
    status, message = run("check", recipe, monkeypatch=monkeypatch, capfd=capfd)
    assert status == 2
    assert "partita --import FILE.py" in message


def test_a_file_is_imported_once_and_handed_on(tmp_path):
    from partita.core import imports
    from partita.evaluation import launch

    file = tmp_path / "handed_part.py"
    file.write_text(PART.replace("NAME", "handed-part"))
    for _ in range(2):
        partita.import_file(file)
    assert imports.imported().count(str(file)) == 1
    assert str(file) in launch.Restartable().imports


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("none.py", None, "no such file"),
        ("part.txt", "", r"does not end in \.py"),
        ("json.py", "", "a module 'json'"),
        ("two-words.py", "", "a module 'two-words'"),
        ("broken_part.py", "x = 1\nx +\n", "line 2: SyntaxError"),
        ("failing_part.py", "x = 1\n\nx / 0\n", "line 3: ZeroDivisionError"),
    ],
)
def test_files_that_cannot_be_imported_are_one_message(tmp_path, name, content, word):
    if content is not None:
        (tmp_path / name).write_text(content)
    path = list(sys.path)
    with pytest.raises(partita.PartitaError, match=word):
        partita.import_file(tmp_path / name)
    assert sys.path == path
