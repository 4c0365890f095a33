"""The Hub's bad days: it is busy, broken, slow, endless, replaced by a proxy, or interrupted."""

import os
import re
import signal
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, get_session, set_client_factory
from huggingface_hub.utils._http import default_client_factory

import partita
from command_line import fork
from command_line import run as run_cli
from hub_server import dripping, login_page, refusing, silent
from partita import limits
from partita.publishing.push import push
from partita.storage.download import fetch
from partita.storage.patience import Abandoned, Silent, patiently

EVERYTHING = "."
DOWNLOAD = "(GET|HEAD) /.*/resolve/"
PUSH = ("push", "--examples", "0")  # the clips of a model card take most of the time


@pytest.fixture
def cli(monkeypatch, capfd):
    return lambda *arguments: run_cli(*arguments, monkeypatch=monkeypatch, capfd=capfd)


@pytest.fixture
def published(hub, saved_toy):
    """A hub that holds a system, under alice/toy."""
    names = [path.relative_to(saved_toy).as_posix() for path in saved_toy.rglob("*") if path.is_file()]
    hub.put("alice/toy", {name: (saved_toy / name).read_bytes() for name in names})
    return hub


@pytest.fixture
def impatient(monkeypatch):
    """Silence is short, and the client does not sleep before it repeats a request."""
    monkeypatch.setattr(limits, "LONGEST_SILENCE", 0.2)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture
def sleepless(monkeypatch):
    slept = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", slept.append)
    return slept


@pytest.mark.parametrize("where", [EVERYTHING, DOWNLOAD, "POST", "PUT"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (refusing(429), ["status 429", "busy", "try again later"]),
        (refusing(429, Retry_After="120"), ["status 429", "busy", "in 120 s"]),
        (refusing(429, RateLimit='"api";r=0;t=55'), ["status 429", "busy", "in 55 s"]),
        (refusing(500), ["status 500", "an internal error", "try again later"]),
        (
            refusing(503, Retry_After=formatdate(time.time() + 3600, usegmt=True)),
            ["status 503", "an internal error", "in 3"],
        ),
    ],
)
def test_a_busy_or_broken_hub_is_not_taken_for_the_network(published, cli, saved_toy, sleepless, where, fault, words):
    published.faults = {where: fault}
    pushed = where.startswith("P")
    status, text = cli(
        *(["push", saved_toy, "alice/new", "--examples", "0"] if pushed else ["generate", "alice/toy", "tone"])
    )
    assert (status, "Traceback" in text, "network" in text) == (2, False, False), text
    message = text[text.index("error:") :]
    assert all(word in message for word in words), text
    assert max(sleepless, default=0) <= 12, "the client slept for as long as the server wished"


def test_what_is_in_the_cache_serves_while_the_hub_is_busy(published):
    expected = partita.load("alice/toy").generate(["tone 1"], duration=0.5, seed=7)
    for fault in (refusing(429, Retry_After="3600"), refusing(502)):
        published.faults = {EVERYTHING: fault}
        assert partita.load("alice/toy").generate(["tone 1"], duration=0.5, seed=7).equal(expected)


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("/api/models/", silent),
        (DOWNLOAD, silent),
        ("/api/models/", dripping(b"HTTP/1.1 200 OK\r\nX-Long: ")),
        (DOWNLOAD, dripping(b"HTTP/1.1 200 OK\r\nX-Long: ")),
        ("/api/models/", dripping(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[")),
        ("GET /storage/", dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")),
        ("POST", silent),
        ("PUT", silent),
        ("PUT", dripping(b"HTTP/1.1 200 OK\r\nX-Long: ")),
    ],
)
def test_answers_that_never_end_are_given_up(published, cli, saved_toy, impatient, where, fault):
    published.faults = {where: fault}
    pushed = where.startswith("P")
    status, text = cli(
        *(["push", saved_toy, "alice/new", "--examples", "0"] if pushed else ["generate", "alice/toy", "tone"])
    )
    assert (status, "Traceback" in text) == (2, False), text
    assert "less than 6,000 bytes in 0.2 s" in text
    assert "PARTITA_LIMITS=off" in text


def test_a_slow_hub_that_goes_on_is_waited_for(published, impatient, monkeypatch):
    def late(content):
        published.closing.wait(0.05)
        return content

    published.spoiled = {"/resolve/|/storage/": late}
    monkeypatch.setattr(limits, "LONGEST_SILENCE", 0.4)
    monkeypatch.setattr(limits, "LEAST_PROGRESS", 100)
    assert partita.load("alice/toy").stages


def test_fast_answers_without_end_are_given_up(published, cli, monkeypatch):
    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while not handler.hub.closing.is_set():
            handler.wfile.write(b" " * 100_000)

    published.faults = {"/api/models/": endless}
    monkeypatch.setattr(limits, "LARGEST_RESULTS", 3_000_000)
    status, text = cli("generate", "alice/toy", "tone")
    assert (status, "sends endless responses" in text) == (2, True), text


def test_pages_without_end_are_given_up(published, cli, monkeypatch):
    def page(handler):
        after = f"{handler.hub.url}{handler.path.partition('?')[0]}?cursor=1"
        handler._json([], 200, {"Link": f'<{after}>; rel="next"'})

    published.faults = {"/tree/": page}
    monkeypatch.setattr(limits, "MOST_ANSWERS", 40)
    status, text = cli("generate", "alice/toy", "tone")
    assert (status, "sends endless responses" in text) == (2, True), text


def test_the_clients_own_time_limit_is_named(published, cli, impatient, monkeypatch):
    monkeypatch.setattr(limits, "LONGEST_SILENCE", 60.0)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    published.faults = {"GET /.*/resolve/": silent}
    status, text = cli("generate", "alice/toy", "tone")
    assert (status, "within 0.05 s" in text, "HF_HUB_DOWNLOAD_TIMEOUT" in text) == (2, True, True), text


def test_a_login_page_in_the_place_of_the_hub(published, cli):
    published.faults = {EVERYTHING: login_page}
    status, text = cli("generate", "alice/toy", "tone")
    assert (status, "Traceback" in text, "does not answer as the hub does" in text) == (2, False, True), text


def test_json_of_something_else_in_the_place_of_the_hub(published, cli):
    published.faults = {EVERYTHING: lambda handler: handler._json({"login": "required"})}
    status, text = cli("generate", "alice/toy", "tone")
    assert (status, "Traceback" in text, "does not answer as the hub does" in text) == (2, False, True), text


@pytest.mark.parametrize("name", ["recipe.yaml", "stages/main/config.json", "stages/main/model.safetensors"])
@pytest.mark.parametrize("spoil", [lambda c: bytes(len(c)), lambda c: c[:-1] + bytes([c[-1] ^ 1])])
def test_other_bytes_than_the_hub_lists_are_noticed_and_said_where_to_delete(published, cli, name, spoil):
    published.spoiled = {"recipe.yaml|config.json": spoil} if "safetensors" not in name else {"/storage/": spoil}
    status, text = cli("generate", "alice/toy", "tone")
    assert (status, "Traceback" in text, "not what the hub has" in text) == (2, False, True), text
    status, again = cli("generate", "alice/toy", "tone")  # which now finds it in the cache
    if "safetensors" not in name:
        assert (status, "not what the hub has" in again) == (2, True), again
    _delete_and_try_again(published, text)


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("name", ["recipe.yaml", "stages/main/config.json", "stages/main/model.safetensors"])
@pytest.mark.parametrize("body", [b"", b"<html>Please log in</html>"])
def test_a_wrong_body_in_the_cache_is_named(published, cli, monkeypatch, offline, name, body):
    folder = fetch("alice/toy", ["*"])
    real = (folder / name).resolve()
    real.write_bytes(body)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    status, text = cli("generate", "alice/toy", "tone")
    assert (status, "Traceback" in text, f"delete {real}" in text) == (2, False, True), text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _delete_and_try_again(published, text)


@pytest.mark.parametrize("spoil", [lambda c: c[:-5], lambda c: c[:-1] + bytes([c[-1] ^ 1])])
def test_a_large_file_that_is_wrong_in_the_cache_is_named_without_a_network(published, cli, monkeypatch, spoil):
    real = (fetch("alice/toy", ["*"]) / "stages/main/model.safetensors").resolve()
    real.write_bytes(spoil(real.read_bytes()))
    monkeypatch.setattr("partita.storage.hub_cache.SMALL", 0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, text = cli("generate", "alice/toy", "tone")
    assert (status, f"delete {real}" in text) == (2, True), text


def test_files_that_repositories_of_the_cache_share_are_read_and_checked(published, cli):
    """As the client leaves what it downloads by xet."""
    expected = partita.load("alice/toy").generate(["tone 1"], duration=0.5, seed=7)
    weights = fetch("alice/toy", ["*"]) / "stages/main/model.safetensors"
    entry = weights.parent / weights.readlink()
    store = Path(constants.HF_HUB_CACHE).resolve() / "blobs"
    shared = store / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    (store / ".huggingface-shared-blobs").write_text("1")
    entry.rename(shared)
    entry.symlink_to(os.path.relpath(shared, entry.resolve().parent))
    assert partita.load("alice/toy").generate(["tone 1"], duration=0.5, seed=7).equal(expected)
    shared.write_bytes(shared.read_bytes()[:-5])
    status, text = cli("generate", "alice/toy", "tone")
    assert (status, f"delete {shared}" in text) == (2, True), text
    shared.unlink()
    assert partita.load("alice/toy").generate(["tone 1"], duration=0.5, seed=7).equal(expected)


def _delete_and_try_again(hub, text):
    """What the message says is enough: what is there then is what the hub has."""
    hub.spoiled = {}
    for path in re.findall(r"(/\S+/blobs/\w+)", text):
        Path(path).unlink()
    folder, repository = fetch("alice/toy", ["*"]), hub.repositories["alice/toy"]
    files = repository.commits[repository.refs["main"]].files
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(files)
    assert all((folder / name).read_bytes() == content for name, content in files.items())


def test_a_file_of_another_size_than_listed_is_not_kept(published, cli):
    published.spoiled = {"/storage/": lambda content: content + b"more"}
    status, text = cli("generate", "alice/toy", "tone")
    assert (status, "Traceback" in text, "another size than the hub lists" in text) == (2, False, True), text
    _delete_and_try_again(published, text)
    assert partita.load("alice/toy").stages


@pytest.mark.parametrize("arguments", [["push", "RUN", "alice/new"], ["generate", "alice/toy", "tone"]])
def test_a_token_with_a_typographic_quote(published, cli, saved_toy, monkeypatch, arguments):
    monkeypatch.setenv("HF_TOKEN", "“hf_alice”")
    status, text = cli(*[str(a).replace("RUN", str(saved_toy)) for a in arguments])
    assert (status, "Traceback" in text, "'“'" in text, "HF_TOKEN" in text) == (2, False, True, True), text
    assert "hf_alice" not in text


@pytest.fixture
def hanging(published):
    """Makes requests hang, and returns an event that says when one does."""

    def hang_at(where):
        begun = threading.Event()
        published.faults = {where: lambda handler: (begun.set(), silent(handler))}
        return begun

    disable_progress_bars()  # threads that are given up would still write theirs, over what is captured
    yield hang_at
    enable_progress_bars()


@pytest.mark.parametrize("where", ["PUT /storage/", "POST /.*/commit/", "/api/models/", DOWNLOAD])
def test_ctrl_c_stops_waiting_for_requests_that_hang(published, cli, saved_toy, hanging, where):
    begun = hanging(where)
    interrupt = threading.Thread(target=lambda: begun.wait(60) and os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    pushed = where.startswith("P")
    status, text = cli(
        *(["push", saved_toy, "alice/new", "--examples", "0"] if pushed else ["generate", "alice/toy", "tone"])
    )
    interrupt.join()
    assert (status, "stopped; run the same command again to resume" in text, "Traceback" in text) == (130, True, False)
    assert not pushed or len(published.repositories["alice/new"].commits) == 1


def test_ctrl_c_ends_the_process_of_an_upload_whose_threads_hang(published, saved_toy, tmp_path, hanging):
    begun, output = hanging("PUT /storage/"), tmp_path / "output.txt"
    process = fork(*PUSH, saved_toy, "alice/new", output=output)
    try:
        for _ in range(600):  # rather than wait for one that hangs
            if begun.wait(0.1):
                break
            assert process.is_alive(), output.read_text()
        os.kill(process.pid, signal.SIGINT)
        process.join(60)  # without help, never: its end waits for its threads
    finally:
        process.kill()
    assert (process.exitcode, output.read_text()) == (130, "stopped; run the same command again to resume\n")
    assert len(published.repositories["alice/new"].commits) == 1


def test_after_an_interruption_no_thread_of_it_sends_anything_more(hub, saved_toy, impatient):
    hub.faults = {"/silent": silent}
    go_on, outcome = threading.Event(), []

    def late():
        go_on.wait()
        try:
            get_session().get(f"{hub.url}/late")
        except Exception as error:
            outcome.append(type(error))

    thread = threading.Thread(target=late)

    def ask():
        thread.start()
        get_session().get(f"{hub.url}/silent")

    with pytest.raises(Silent, match="less than 6,000 bytes"):
        patiently(ask)
    go_on.set()
    thread.join()
    assert outcome == [Abandoned]
    assert ("GET", "/late") not in hub.requests
    assert push(saved_toy, "alice/new", examples=0)


def test_a_client_of_ones_own_is_used_and_is_there_afterwards(published):
    made = []

    def mine():
        made.append(default_client_factory())
        return made[-1]

    set_client_factory(mine)
    try:
        partita.load("alice/toy")
        used = len(made)
        assert used
        assert get_session() is made[-1]
        assert "send" not in vars(get_session())
    finally:
        set_client_factory(default_client_factory)
