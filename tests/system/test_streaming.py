"""Audio that is decoded while it is generated is the audio that would have been decoded afterwards."""

import threading

import pytest
import torch
import yaml

import partita
from partita.recipe.plan import load_recipe
from partita.system.system import System
from toys import TOY_RECIPE

CAUSAL = {"name": "seanet", "network": {"width": 4, "strides": [5, 8], "dilations": [1], "lstm_layers": 1}}
CENTERED = {"name": "stft-convnext", "encoder_width": 8, "encoder_depth": 1, "decoder_width": 8, "decoder_depth": 2}


def codec(autoencoder):
    return {
        "name": "codec",
        "sample_rate": 2000,
        "dim": 8,
        "autoencoder": autoencoder,
        "bottleneck": {"name": "rvq", "num_codebooks": 4, "cardinality": 32},
        "losses": {"adversarial": 0, "feature_matching": 0},
    }


def stage(target, given=("text",), name="autoregressive", **changes):
    network = "denoiser" if name == "diffusion" else "backbone"
    kind = "dit" if name == "diffusion" else "transformer"
    generator = {"name": name, network: {"name": kind, "width": 16, "depth": 1, "num_heads": 2}, **changes}
    return {"generator": generator, "target": target, "given": list(given), "window": 1.6, "overlap": 0.5}


def recipe(autoencoder=CAUSAL, **stages):
    return {
        "tokenizers": {"acoustic": codec(autoencoder)},
        "conditioners": {"text": "toy-letters"},
        "stages": stages or {"acoustic": stage("acoustic")},
        "data": "toy-sines",
    }


@pytest.fixture
def make(tmp_path):
    def make(values):
        path = tmp_path / "recipe.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        system = System(load_recipe(path))
        for part in system.parts.values():
            part.eval()
        return system

    return make


def agree(system, atol=1e-5, **options):
    """The chunks of a stream, which together are what is generated at once."""
    options = {"prompts": ["a", "b"], "duration": 4.0, "seed": 3, **options}
    chunk = options.pop("chunk", 0.25)
    chunks = list(system.stream(chunk=chunk, **options))
    whole = system.generate(**options)
    torch.testing.assert_close(torch.cat(chunks, -1), whole, atol=atol, rtol=0)
    assert whole.std() > 1e-3
    return chunks


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten", "partial_flatten"])
@pytest.mark.parametrize("autoencoder", [CAUSAL, CENTERED], ids=["causal", "centered"])
def test_chunks_arrive_early_and_are_together_what_is_generated(make, autoencoder, pattern):
    system = make(recipe(autoencoder, acoustic=stage("acoustic", pattern=pattern)))
    chunks = agree(system)
    assert len(chunks) >= 10
    assert max(chunk.shape[-1] for chunk in chunks) <= 1.0 * 2000  # what is late arrives with the next window


def test_the_first_chunk_is_there_before_the_second_second_is_generated(make):
    system, frames = make(recipe(CENTERED)), []
    with partita.core.progress.reporting(lambda name, done, total: frames.append(done)):
        stream = system.stream(["a"], duration=4.0)
        assert next(stream).shape[-1] > 0
    rate = system.output.spec.frame_rate
    handed = system.output.decoding_steps()[-1].after
    assert (handed + 0.5 * rate + 4) / rate <= 1.5
    stream.close()


def test_layers_of_codebooks_that_come_one_after_the_other_stream_window_by_window(make):
    assert len(agree(make(recipe(acoustic=stage("acoustic", pattern="coarse_first"))))) >= 3


def test_stories_and_continuations_stream(make):
    system = make(recipe())
    story = partita.Story([(0, "a"), (1.7, "bc")])
    agree(system, prompts=[story, story])
    start = torch.sin(torch.arange(2500) / 5)[None, None] * 0.5
    for splice in (True, False):
        chunks = agree(system, continuation=start, splice=splice, prompts=["a", "b"])
        assert len(chunks) >= 8
    assert torch.equal(agree(system, continuation=start)[0][0, :, :2200], start[0, :, :2200])


def test_stories_that_change_at_other_times_are_refused(make):
    stories = [partita.Story([(0, "a"), (time, "b")]) for time in (1, 2)]
    with pytest.raises(partita.PartitaError, match="must change at the same times"):
        make(recipe()).stream(stories, duration=4)


def test_chains_stream_their_last_stage(make):
    stages = {
        "coarse": stage("acoustic[:2]"),
        "fine": stage("acoustic[2:]", ["acoustic[:2]"], pattern="parallel"),
    }
    assert len(agree(make(recipe(**stages)))) >= 10


def test_latents_stream_window_by_window(make):
    system = make(recipe(acoustic=stage("acoustic/latents", name="diffusion", sampling={"steps": 2})))
    assert len(agree(system)) >= 3


def test_samples_that_end_early_are_followed_by_silence(make, monkeypatch):
    """A sample ends after a number of frames that its seed decides, and so in different windows."""
    system = make(recipe(acoustic=stage("acoustic", ends=True)))
    main = system.stages["acoustic"]
    end = main.codebooks.end
    weights = main.output_heads.weight.view(-1, 16)

    with torch.no_grad():
        weights[end] *= 3  # the end is likelier for some states
    lengths = system.generate_representations(["a", "b", "c"], duration=4.0, seed=3)["acoustic"].lengths.tolist()
    for seed in range(3, 40):
        options = {"prompts": ["a", "b", "c"], "duration": 4.0, "seed": seed}
        lengths = system.generate_representations(**options)["acoustic"].lengths.tolist()
        if len(set(lengths)) > 1 and max(lengths) > 8:
            break
    assert len(set(lengths)) > 1
    agree(system, **options)


def test_several_ends_are_mixed(make):
    values = recipe()
    values["tokenizers"] = {name: {**codec(CAUSAL), "reads": f"stems.{name}"} for name in ("low", "high")}
    values["stages"] = {"one": stage("low"), "two": stage("high")}
    values["data"] = {"name": "corpus", "stems": True}
    agree(make(values))


def test_a_decoder_of_whole_clips_cannot_stream(make):
    values = recipe(acoustic=stage("acoustic", name="diffusion", sampling={"steps": 2}))
    values["tokenizers"] = {"acoustic": {"name": "log-mel", "sample_rate": 2000, "bands": 8}}
    with pytest.raises(
        partita.PartitaError, match="the tokenizer acoustic decodes only whole clips, so they cannot stream"
    ):
        make(values).stream(["a"], duration=2)


def test_borders_of_chunks_are_as_smooth_as_the_rest(make):
    """Max |x[n-1] - 2 x[n] + x[n+1]| around the borders, against all other places."""
    system = make(recipe(CENTERED))
    chunks = agree(system, prompts=["a"], duration=6.0)
    audio = torch.cat(chunks, -1)[0, 0]
    second = (audio[:-2] - 2 * audio[1:-1] + audio[2:]).abs()
    borders = torch.tensor([chunk.shape[-1] for chunk in chunks]).cumsum(0)[:-1]
    at = torch.zeros_like(second, dtype=torch.bool)
    for shift in (-2, -1):
        at[borders + shift] = True
    assert second[at].max() <= second[~at].max()


def test_generation_ends_when_the_loop_over_its_chunks_ends(make):
    system, before = make(recipe()), threading.active_count()
    stream = system.stream(["a"], duration=60.0)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_errors_reach_the_loop_over_the_chunks(make):
    system = make(recipe())
    with torch.no_grad():
        system.stages["acoustic"].output_heads.weight.fill_(torch.nan)
    with pytest.raises(partita.PartitaError, match="not finite"):
        list(system.stream(["a"], duration=2.0))
    with pytest.raises(partita.PartitaError, match="chunk must be more than 0"):
        system.stream(["a"], chunk=0)


def test_toys_stream(make):
    agree(make(TOY_RECIPE))


def test_a_continuation_has_the_same_samples_alone_and_in_a_batch(make):
    system = make(recipe(acoustic=stage("acoustic/latents", name="diffusion", sampling={"steps": 2})))
    start = torch.sin(torch.arange(1777) / 5)[None, None] * torch.tensor([0.5, 0.2, 0.7])[:, None, None]
    batch = system.generate(["a", "b", "c"], duration=2.0, seed=[3, 4, 5], continuation=start, splice=False)
    for i, prompt in enumerate("abc"):
        alone = system.generate([prompt], duration=2.0, seed=3 + i, continuation=start[i : i + 1], splice=False)
        assert torch.equal(alone[0], batch[i])
