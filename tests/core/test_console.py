"""What others wrote is printed as it stands, whatever it says."""

import errno
import io
import threading
import warnings

import pytest

from command_line import run
from partita.core import console, devices
from partita.core.console import PlainConsole
from partita.errors import PartitaError

EVIL = "[bold]x [/b] :smile: \x1b]0;title\x07 \x1b[31m \u202eabc \x9b2J \r"
SPELLED = r"[bold]x [/b] :smile: \x1b]0;title"


def printed(print_it):
    """What a console writes to a terminal."""
    stream = io.StringIO()
    print_it(PlainConsole(file=stream, force_terminal=True, width=200, color_system=None))
    return stream.getvalue()


@pytest.mark.parametrize(
    "print_it",
    [
        lambda out: out.print(EVIL),
        lambda out: out.print(f"error: {EVIL}", style="red"),
        lambda out: out.print(_table()),
    ],
)
def test_neither_markup_nor_control_characters_of_data_count(print_it):
    text = printed(print_it)
    assert SPELLED in text
    assert not set(text) & set("\x1b\x07\x9b\u202e\r")


def _table():
    table = console.columns(EVIL, "parameters", right=["parameters"])
    table.add_row(EVIL, "1")
    return table


def test_progress_bars_take_names_as_they_are(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", PlainConsole(file=stream, force_terminal=True, width=200, color_system=None))
    with console.bars() as bar:
        bar(EVIL, 1, 2)
        with console.bars() as inner:  # one display at a time: the inner one is not seen
            inner("inner", 1, 1)
    text = stream.getvalue()
    assert SPELLED in text
    assert "inner" not in text
    assert "\x1b]0" not in text


def test_bars_are_for_people_alone(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", PlainConsole(file=stream, width=200))
    with console.bars() as bar:
        bar("clips", 1, 2)
    assert stream.getvalue().strip() == ""


def test_warnings_become_messages(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", PlainConsole(file=stream, width=200))
    with console.as_messages():
        warnings.warn("a file called [/b]", stacklevel=1)
    assert stream.getvalue() == "warning: a file called [/b]\n"


def test_prompts_may_look_like_markup(monkeypatch, capfd, saved_toy, tmp_path):
    words = ("[/b] flute", "[bold]x")
    output = tmp_path / "clip.wav"
    status, text = run("generate", saved_toy, *words, "-d", "0.1", "-o", output, monkeypatch=monkeypatch, capfd=capfd)
    assert status == 0, text
    assert all(f"“{prompt}”" in text for prompt in words)
    assert (tmp_path / "clip-2.wav").is_file()


def test_names_in_a_recipe_cannot_reach_the_terminal(monkeypatch, capfd, tmp_path):
    recipe = tmp_path / "evil.yaml"
    recipe.write_text('tokenizers: {"\\x1b]0;title\\x07[/b]": toy-codec}\ndata: toy-sines\n')
    for command in ("check", "train", "ablate"):
        status, text = run(command, recipe, monkeypatch=monkeypatch, capfd=capfd)
        assert status == 2
        assert r"\x1b]0;title" in text
        assert not set(text) & set("\x1b\x07")


def test_a_thread_that_can_no_longer_log_is_a_warning(capfd):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with console.as_messages():
        thread = threading.Thread(target=full)
        thread.start()
        thread.join()
    told = capfd.readouterr().err
    assert "warning: a log cannot be written any more: [Errno 28] No space left on device" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("name", ["meta", "hpu", "abc", "cuda:-1"])
def test_devices_that_nothing_runs_on_are_one_message(name):
    with pytest.raises(PartitaError, match=f"no device '{name}' here"):
        devices.find_device(name)
