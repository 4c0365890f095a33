import gc
import logging
import os
import signal
import ssl
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))

# Nothing here imports torch before a test runs: the process that hands out the tests to others would wait for it.

gc.disable()


def pytest_collection_finish():
    """Modules and tests stay to the end. Looking for garbage among them would take a tenth of the time."""
    gc.freeze()
    gc.enable()


# Tests end processes by force. One that is forked and ended while it holds tqdm's own lock would hold it here, too.
tqdm.set_lock(threading.RLock())

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background; Ctrl-C is tested
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Parsed scores go to a folder of the test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARTITA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """Files are not flushed to the disk, since no test outlives a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    # Without preparing accelerators that no test has used, which takes longer than many tests.
    (torch.manual_seed if torch.cuda.is_initialized() else torch.default_generator.manual_seed)(0)


@pytest.fixture(scope="session")
def t5_checkpoint(tmp_path_factory):
    """Makes a folder as transformers writes one: a whole tiny T5, and a text tokenizer of a few words."""

    def make(feed_forward, texts):
        import torch
        import transformers

        from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

        folder = tmp_path_factory.mktemp("t5")
        torch.manual_seed(0)
        config = transformers.T5Config(
            vocab_size=64, d_model=16, d_ff=24, d_kv=8, num_layers=2, num_heads=2, feed_forward_proj=feed_forward
        )
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
        words = Tokenizer(models.Unigram())
        words.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["<pad>", "</s>", "<unk>"]
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
        words.train_from_iterator(texts * 5, trainer)
        words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def narrow_encodec(tmp_path_factory):
    """A slot of an EnCodec at 24 kHz that is narrower than the published one, with random weights."""
    from partita.recipe.compose import compose
    from partita.recipe.plan import check_recipe
    from partita.system.system import System

    folder = tmp_path_factory.mktemp("encodec")
    slot = {
        "preset": "encodec-24khz",
        "weights": None,
        "num_codebooks": 2,
        "autoencoder": {"network": {"width": 4}},
        "bottleneck": {"num_codebooks": 4, "cardinality": 64, "codebook_choices": None},
    }
    system = System(check_recipe(compose({"tokenizers": {"codec": slot}, "data": "corpus"})))
    system.tokenizers["codec"].save(folder / "codec")
    return slot | {"weights": str(folder / "codec")}


@pytest.fixture
def toy_recipe(tmp_path):
    """The path of a recipe of toy parts, alone in its folder."""
    from toys import TOY_RECIPE

    path = tmp_path / "recipes" / "toy.yaml"
    path.parent.mkdir()
    path.write_text(TOY_RECIPE)
    return path


@pytest.fixture(scope="session")
def saved_toy(tmp_path_factory):
    """The folder of a saved system of toy parts, its weights random."""
    import torch

    from partita.recipe.plan import load_recipe
    from partita.system.system import System
    from toys import TOY_RECIPE

    folder = tmp_path_factory.mktemp("saved")
    (folder / "toy.yaml").write_text(TOY_RECIPE)
    torch.manual_seed(0)
    System(load_recipe(folder / "toy.yaml")).save(folder / "system")
    return folder / "system"


_certificates = cache(ssl.create_default_context)
"""Certificates are read once for all clients, which takes longer than most conversations with the local Hub."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of its own, an empty cache, and alice's token."""
    from huggingface_hub import constants

    from hub_server import Hub

    before, hub = set(threading.enumerate()), Hub()
    monkeypatch.setattr(ssl, "create_default_context", _certificates)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield hub
    hub.close()
    # The next test may fork: a lock that a thread of a client holds would stay locked. tqdm's monitor never ends, and
    # threads of the server wait for connections that are kept.
    until = time.monotonic() + 10
    while time.monotonic() < until and any(
        type(thread) is threading.Thread and "process_request_thread" not in thread.name
        for thread in set(threading.enumerate()) - before
    ):
        time.sleep(0.005)


class ProgressLines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def lines():
    """The lines that are logged, as they come."""
    logger, handler = logging.getLogger("partita"), ProgressLines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(before)
