import logging
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))

from toys import TOY_RECIPE

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


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def t5_checkpoint(tmp_path_factory):
    """Makes a folder as transformers writes one: a whole tiny T5, and a text tokenizer of a few words."""

    def make(feed_forward, texts):
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


@pytest.fixture
def toy_recipe(tmp_path):
    """The path of a recipe of toy parts, alone in its folder."""
    path = tmp_path / "recipes" / "toy.yaml"
    path.parent.mkdir()
    path.write_text(TOY_RECIPE)
    return path


@pytest.fixture(scope="session")
def saved_toy(tmp_path_factory):
    """The folder of a saved system of toy parts, its weights random."""
    from partita.recipe.plan import load_recipe
    from partita.system.system import System

    folder = tmp_path_factory.mktemp("saved")
    (folder / "toy.yaml").write_text(TOY_RECIPE)
    torch.manual_seed(0)
    System(load_recipe(folder / "toy.yaml")).save(folder / "system")
    return folder / "system"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of its own, an empty cache, and alice's token."""
    from huggingface_hub import constants

    from hub_server import Hub

    hub = Hub()
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield hub
    hub.close()


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
