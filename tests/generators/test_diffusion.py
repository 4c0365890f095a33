import warnings
from dataclasses import fields, replace

import pytest
import torch

from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.core.part import Part
from partita.errors import PartitaError
from partita.generators.base import NO_DROPOUT, ConditionDropout
from partita.generators.denoisers.base import Denoiser
from partita.generators.denoisers.dit import DiT
from partita.generators.diffusion import Diffusion
from partita.layers.attention import CrossAttention
from partita.layers.guidance import Term, nested_guidance
from partita.layers.noise_process import SCHEDULERS, DiffusionSampling
from partita.layers.transformer_blocks import BlockConfig

TARGET = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=25.0, dim=8)
TEXT = {"text": Given(ConditionSpec(dim=16), "cross")}
EVERYTHING = {
    "text": Given(ConditionSpec(dim=16), "cross"),
    "style": Given(ConditionSpec(dim=6), "modulate"),
    "chroma": Given(ConditionSpec(dim=4, frame_rate=12.5), "concat"),
}
FRAMES = 16
LOSING = {"condition_dropout": ConditionDropout(0.25)}
BLOCK = {field.name for field in fields(BlockConfig)}
SIZES = {"width": 32, "depth": 2, "num_heads": 4}


def make(given=TEXT, **options):
    torch.manual_seed(0)
    return Diffusion(TARGET, given, denoiser=small(options), **options)


def small(options):
    """A diffusion transformer of what the options say of it, which are taken out of them."""
    block = BlockConfig(**{name: options.pop(name) for name in BLOCK if name in options})
    return DiT(**{name: options.pop(name, size) for name, size in SIZES.items()}, block=block)


def shaken(stage):
    """The stage, ready to generate, with weights that are zero at the start drawn at random."""
    draw = torch.Generator().manual_seed(2)
    for weight in stage.parameters():
        if not weight.any():
            weight.data = 0.2 * torch.randn(weight.shape, generator=draw)
    stage.standardize.mean.copy_(torch.linspace(-3, 3, 8))
    stage.standardize.variance.copy_(torch.linspace(0.5, 4, 8))
    return stage.eval()


def pairs_of(given, batch, length=6):
    """Random pairs (condition, null), of another length in each sample."""
    draw = torch.Generator().manual_seed(1)
    pairs = {}
    for name, fusion in given.items():
        mask = torch.arange(length) < (torch.arange(batch) % length + 1)[:, None]
        values = torch.randn(batch, length, fusion.spec.dim, generator=draw)
        pairs[name] = (Condition(values, mask), Condition(torch.zeros_like(values), torch.zeros_like(mask)))
    return pairs


def rows(pairs, index):
    """The samples of a batch that ``index`` picks."""
    return {n: tuple(Condition(c.values[index], c.mask[index]) for c in pair) for n, pair in pairs.items()}


def conditions_of(pairs):
    return {name: condition for name, (condition, _) in pairs.items()}


def clips():
    """Four clips of latents, whose channels differ in mean and deviation."""
    draw = torch.Generator().manual_seed(3)
    shapes = torch.randn(4, 8, FRAMES, generator=draw).cumsum(-1) / 2 + 1.5 * torch.randn(4, 8, 1, generator=draw)
    return shapes * torch.linspace(0.3, 4, 8)[:, None] + torch.linspace(-5, 5, 8)[:, None]


def signal_to_noise(result, truth):
    """In dB, of each sample."""
    own = truth - clips().mean((0, 2))[:, None]
    return 10 * torch.log10(own.square().sum((1, 2)) / (result - truth).square().sum((1, 2)))


@pytest.fixture(scope="module", params=["flow", "v"])
def fitted(request):
    """A stage that has learned two clips, each with its condition or without; four of each, and their conditions."""
    stage = make(
        width=64,
        objective=request.param,
        norm="rms",
        qk_norm=True,
        condition_dropout=ConditionDropout(0.25),
        continuation=0.5,
    ).train()
    copies = torch.arange(2).repeat(8)
    target, mask, repeated = clips()[copies], torch.ones(16, FRAMES).bool(), rows(pairs_of(TEXT, 2), copies)
    steps = 400
    optimizer = torch.optim.AdamW(stage.parameters(), 2e-2, betas=(0.9, 0.98), fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-2 * min((step + 1) / 20, 1 - step / steps)
        loss = stage.loss(target, mask, stage.drop(repeated))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()
    some = slice(8)  # so many noises do not lead to the right one of two clips by chance
    return stage.eval(), target[some], rows(repeated, some)


def test_a_fitted_stage_generates_its_clips_from_their_conditions(fitted):
    stage, learned, pairs = fitted
    for name in SCHEDULERS[stage.noise_process.objective]:
        clip = stage.generate(pairs, FRAMES, seeds=range(8), sampling=DiffusionSampling(name, 20, 1.0)).values
        assert signal_to_noise(clip, learned).min() > 10, name


def test_a_fitted_stage_continues_what_it_is_given(fitted):
    stage, learned, pairs = fitted
    nothing = {name: (null, null) for name, (_, null) in pairs.items()}
    half = learned[:, :, : FRAMES // 2]
    for name in SCHEDULERS[stage.noise_process.objective]:
        sampling = DiffusionSampling(name, 20, 1.0)
        clip = stage.generate(nothing, FRAMES, seeds=range(8), prefix=half, sampling=sampling).values
        assert torch.equal(clip[:, :, : FRAMES // 2], half)
        rest = slice(FRAMES // 2, None)
        assert signal_to_noise(clip[:, :, rest], learned[:, :, rest]).min() > 8, name


def test_statistics_are_taken_while_training_only():
    stage = make()
    target, mask = clips(), torch.ones(4, FRAMES).bool()
    mask[0, 5:] = False
    stage.eval().loss(target, mask, conditions_of(pairs_of(TEXT, 4)))
    assert stage.standardize.count == 0
    stage.train().loss(target, mask, conditions_of(pairs_of(TEXT, 4)))
    counted = target.mT[mask]
    torch.testing.assert_close(stage.standardize.mean, counted.mean(0))
    torch.testing.assert_close(stage.standardize.variance, counted.var(0, correction=0))


@pytest.mark.parametrize("objective", SCHEDULERS)
def test_the_loss_of_an_untrained_stage_is_the_power_of_its_target(objective):
    """It predicts zero: noise and data have variance one each, which flow adds up and v mixes."""
    stage = make(objective=objective)
    clip = torch.randn(512, 8, FRAMES)
    loss = stage.loss(clip, torch.ones(512, FRAMES).bool(), conditions_of(pairs_of(TEXT, 512)))["loss"]
    assert loss.item() == pytest.approx(2 if objective == "flow" else 1, rel=0.02)


def test_what_pads_changes_neither_loss_nor_gradient():
    stage = shaken(make(EVERYTHING))
    mask = torch.arange(FRAMES) < torch.tensor([[FRAMES], [9], [5], [1]])
    results = []
    for padding in (0.0, 50.0):
        torch.manual_seed(4)
        target = torch.where(mask[:, None], clips(), padding)
        stage.zero_grad()
        loss = stage.loss(target, mask, conditions_of(pairs_of(EVERYTHING, 4)))["loss"]
        loss.backward()
        results.append((loss, stage.input.weight.grad.clone()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    nothing = stage.loss(clips(), torch.zeros(4, FRAMES).bool(), conditions_of(pairs_of(EVERYTHING, 4)))
    assert nothing["loss"] == 0


def test_a_prompt_is_kept_by_a_stage_that_never_learned_to_continue():
    stage = shaken(make(continuation=0.0))
    assert stage.input.in_features == 8
    prefix = clips()[:, :, :5]
    clip = stage.generate(
        pairs_of(TEXT, 4), FRAMES, seeds=range(4), prefix=prefix, sampling=DiffusionSampling(steps=4)
    ).values
    assert torch.equal(clip[:, :, :5], prefix)
    other = stage.generate(
        pairs_of(TEXT, 4), FRAMES, seeds=range(4), prefix=-prefix, sampling=DiffusionSampling(steps=4)
    ).values
    assert not torch.allclose(clip[:, :, 5:], other[:, :, 5:])


def test_beginnings_that_are_shown_do_not_count():
    stage = make(continuation=1.0)
    mask = torch.arange(FRAMES) < torch.tensor([[FRAMES], [9], [5], [1]])
    for _ in range(20):
        known = stage.train()._beginnings(mask)
        assert not (known & ~mask).any()
        assert (mask & ~known).any(1).all()
        assert (known.long().diff(dim=1) <= 0).all()
    assert not stage.eval()._beginnings(mask).any()


@pytest.mark.parametrize(("objective", "name"), [("flow", "euler"), ("flow", "unipc"), ("v", "ddpm"), ("v", "dpm")])
def test_a_sample_depends_on_its_seed_and_conditions_alone(objective, name):
    stage = shaken(make(EVERYTHING, objective=objective))
    pairs = pairs_of(EVERYTHING, 4)
    sampling = DiffusionSampling(name, 6, 2.0)
    together = stage.generate(pairs, FRAMES, seeds=[7, 8, 9, 7], sampling=sampling).values
    for i in range(4):
        alone = stage.generate(rows(pairs, [i]), FRAMES, seeds=[[7, 8, 9, 7][i]], sampling=sampling).values
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)
    same = stage.generate(rows(pairs, [0, 0, 0]), FRAMES, seeds=[7, 7, 8], sampling=sampling).values
    torch.testing.assert_close(same[0], same[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(same[0], same[2], atol=0.1)


def test_double_guidance_is_the_formula_on_the_predictions():
    """MusicGen-Style (arXiv 2407.12563 §4.2), stepped by hand: one step of Euler is the noise minus the prediction."""
    stage = shaken(make(EVERYTHING))
    pairs = pairs_of(EVERYTHING, 2)
    alpha, beta = 3.0, 1.7
    terms = nested_guidance(("style",), alpha, beta)
    result = stage.generate(pairs, FRAMES, seeds=[1, 2], guidance=terms, sampling=DiffusionSampling("euler", 1)).values
    noise = torch.stack([torch.randn(8, FRAMES, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])

    def prediction(*kept):
        chosen = {name: pair[0 if name in kept else 1] for name, pair in pairs.items()}
        return stage.predict(noise, torch.ones(2), stage.conditioning(chosen, FRAMES))

    with torch.no_grad():
        everything, style, null = prediction("text", "style", "chroma"), prediction("style"), prediction()
    guided = null + alpha * (style + beta * (everything - style) - null)
    torch.testing.assert_close(result, stage.standardize.inverse(noise - guided), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(everything, style)


def test_guidance_of_the_sampling_is_classifier_free():
    stage = shaken(make())
    pairs = pairs_of(TEXT, 2)
    implied = stage.generate(pairs, FRAMES, seeds=[1, 2], sampling=DiffusionSampling(steps=3, guidance=2.5)).values
    terms = [Term(None, 2.5), Term((), -1.5)]
    told = stage.generate(
        pairs, FRAMES, seeds=[1, 2], guidance=terms, sampling=DiffusionSampling(steps=3, guidance=9.0)
    ).values
    assert torch.equal(implied, told)


def test_generating_counts_steps_and_leaves_the_stage_as_it_was():
    stage = shaken(make(dropout=0.5)).train()
    stage.denoiser.eval()
    state = torch.get_rng_state()
    counted = []
    sampling = DiffusionSampling("heun", 3)
    first = stage.generate(
        pairs_of(TEXT, 1), FRAMES, seeds=[0], sampling=sampling, progress=lambda *done: counted.append(done)
    ).values
    assert counted == [(i, 5) for i in range(1, 6)]
    assert stage.training
    assert not stage.denoiser.training
    assert torch.equal(torch.get_rng_state(), state)
    with torch.autocast("cpu", torch.bfloat16):  # as in the validation of a stage trained so
        assert torch.equal(stage.generate(pairs_of(TEXT, 1), FRAMES, seeds=[0], sampling=sampling).values, first)


def test_training_in_lower_precision_stays_close_and_quiet():
    stage = shaken(make(EVERYTHING, norm="rms", qk_norm=True))
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for enabled in (False, True):
            torch.manual_seed(4)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                losses.append(
                    stage.loss(clips(), torch.ones(4, FRAMES).bool(), conditions_of(pairs_of(EVERYTHING, 4)))["loss"]
                )
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


def test_a_saved_stage_generates_the_same(tmp_path):
    stage = shaken(make(EVERYTHING, objective="epsilon", sampling=DiffusionSampling("dpm", 5, 1.5)))
    pairs = pairs_of(EVERYTHING, 2)
    stage.save(tmp_path)
    again = Part.load(tmp_path)
    assert again.sampling == DiffusionSampling("dpm", 5, 1.5)
    assert torch.equal(
        again.generate(pairs, FRAMES, seeds=[1, 2]).values, stage.generate(pairs, FRAMES, seeds=[1, 2]).values
    )


def test_what_is_given_enters_by_what_it_is():
    assert Diffusion.default_fusion(ConditionSpec(dim=4)) == "cross"
    assert Diffusion.default_fusion(ConditionSpec(dim=4, frame_rate=10.0)) == "concat"
    assert Diffusion.default_fusion(ConditionSpec(num_codebooks=2, cardinality=8, frame_rate=50.0)) == "concat"


def test_mistakes_are_refused_with_what_to_do():
    codes = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=50.0, num_codebooks=3, cardinality=16)
    with pytest.raises(ValueError, match=r"generates latents, .*3×16 codes.*: use a continuous tokenizer"):
        Diffusion(codes, {})
    with pytest.raises(ValueError, match="cannot enter by 'prepend'"):
        make({"text": Given(ConditionSpec(dim=4), "prepend")})
    with pytest.raises(ValueError, match="no scheduler 'ddpm' for the objective flow: use euler, heun, dpm, unipc"):
        make(sampling=DiffusionSampling("ddpm"))
    with pytest.raises(ValueError, match="continuation must be a probability"):
        make(continuation=1.5)
    stage = make()
    pairs = pairs_of(TEXT, 2)
    with pytest.raises(PartitaError, match="no scheduler 'ddim' for the objective flow: use euler"):
        stage.generate(pairs, FRAMES, seeds=[1, 2], sampling=DiffusionSampling("ddim"))
    with pytest.raises(ValueError, match="conditions for"):
        stage.generate({}, FRAMES, seeds=[1, 2])
    with pytest.raises(ValueError, match="2 samples for 3 seeds"):
        stage.generate(pairs, FRAMES, seeds=[1, 2, 3])
    with pytest.raises(ValueError, match=r"prefix is \[2, 7, 3\], not \[2, 8, frames\]"):
        stage.generate(pairs, FRAMES, seeds=[1, 2], prefix=torch.zeros(2, 7, 3))
    with pytest.raises(ValueError, match="nothing is left to generate"):
        stage.generate(pairs, FRAMES, seeds=[1, 2], prefix=torch.zeros(2, 8, FRAMES))


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_an_earlier_representation_is_followed_at_its_time_however_long_the_clip(kind):
    """Every frame of latents is a function of what is given at its time, at half the rate; clips were never seen."""
    codes = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=25.0, num_codebooks=1, cardinality=8)
    spec = (codes if kind == "codes" else replace(codes, num_codebooks=None, cardinality=None, dim=8)).as_condition()
    target = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=50.0, dim=4)
    torch.manual_seed(0)
    stage = Diffusion(
        target,
        {"semantic": Given(spec, Diffusion.default_fusion(spec))},
        denoiser=DiT(width=32, depth=1, num_heads=4, block=BlockConfig(norm="rms")),
        condition_dropout=NO_DROPOUT,
    )
    looks, sounds = torch.randn(8, 8), torch.randn(8, 4) * 3 + 1

    def clips(batch, frames):
        drawn = torch.randint(8, (batch, 1, frames // 2))
        given = drawn if kind == "codes" else looks[drawn[:, 0]].mT
        condition = Condition.of(given, torch.ones(batch, frames // 2, dtype=torch.bool))
        return sounds[drawn[:, 0]].mT.repeat_interleave(2, -1), {"semantic": (condition, condition.absent())}

    optimizer = torch.optim.AdamW(stage.parameters(), lr=1.2e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=180)
    for _ in range(180):
        latents, pairs = clips(16, 16)
        conditions = {name: condition for name, (condition, _) in pairs.items()}
        loss = stage.loss(latents, torch.ones(16, 16, dtype=torch.bool), conditions)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for frames in (6, 16, 24):
        latents, pairs = clips(16, frames)
        made = stage.generate(pairs, frames, seeds=range(16), guidance=[Term(None, 1.0)]).values
        ratio = latents.var() / (made - latents).square().mean()
        assert 10 * ratio.log10() >= 10, frames


@pytest.mark.parametrize("given", [TEXT, EVERYTHING], ids=["text", "everything"])
def test_keys_and_values_are_computed_once_and_change_nothing(given, monkeypatch):
    stage, computed = shaken(make(given)), []
    keys_values = CrossAttention.keys_values
    monkeypatch.setattr(CrossAttention, "keys_values", lambda *inputs: computed.append(0) or keys_values(*inputs))
    options = {"seeds": [1, 2], "sampling": DiffusionSampling(steps=3, guidance=2.0)}
    prefix = torch.randn(2, 8, 5)
    once = [stage.generate(pairs_of(given, 2), FRAMES, prefix=known, **options).values for known in (None, prefix)]
    assert len(computed) == 2 * SIZES["depth"]
    monkeypatch.setattr(DiT, "prepare", Denoiser.prepare)
    each = [stage.generate(pairs_of(given, 2), FRAMES, prefix=known, **options).values for known in (None, prefix)]
    assert len(computed) == 2 * SIZES["depth"] * (1 + 3)
    assert all(torch.equal(a, b) for a, b in zip(once, each, strict=True))
