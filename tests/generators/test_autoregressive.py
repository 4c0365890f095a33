from dataclasses import fields

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from partita.conditioners.lookup import Lookup
from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec, StageBatch
from partita.core.part import Part
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.generators.base import NO_DROPOUT, ConditionDropout
from partita.layers.guidance import Term, nested_guidance
from partita.layers.sampling import Sampling
from partita.layers.transformer_blocks import BlockConfig
from toys import told

TARGET = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=50.0, num_codebooks=3, cardinality=16)
TEXT = {"text": Given(ConditionSpec(dim=8), "cross")}
EVERYTHING = {
    "text": Given(ConditionSpec(dim=8), "cross"),
    "style": Given(ConditionSpec(dim=6), "prepend"),
    "coarse": Given(ConditionSpec(num_codebooks=2, cardinality=5), "prepend"),
    "chroma": Given(ConditionSpec(dim=4, frame_rate=12.5), "add"),
}
GREEDY = Sampling(temperature=0, guidance=1)
BLOCK = {field.name for field in fields(BlockConfig)}
SIZES = {"width": 32, "depth": 2, "num_heads": 4, "positions": "sinusoidal"}
PATTERNS = ["delay", "parallel", "flatten", "partial_flatten", "coarse_first", "musiclm"]
POSITIONS = ["sinusoidal", "rotary", "relative"]


def make(given=TEXT, **options):
    torch.manual_seed(0)
    return Autoregressive(TARGET, given, backbone=small(options), **options).eval()


def small(options):
    """A transformer of what the options say of it, which are taken out of them."""
    block = BlockConfig(**{name: options.pop(name) for name in BLOCK if name in options})
    sizes = {name: options.pop(name, size) for name, size in SIZES.items()}
    return Transformer(**sizes, block=block)


def pairs_of(given, batch, length=6):
    """Random pairs (condition, null), of another length in each sample."""
    generator = torch.Generator().manual_seed(1)
    pairs = {}
    for name, fusion in given.items():
        spec = fusion.spec
        mask = torch.arange(length) < (torch.arange(batch) % length + 1)[:, None]
        if spec.dim is None:
            values = torch.randint(spec.cardinality, (batch, spec.num_codebooks, length), generator=generator)
        else:
            values = torch.randn(batch, length, spec.dim, generator=generator)
        pairs[name] = (Condition(values, mask), Condition(torch.zeros_like(values), torch.zeros_like(mask)))
    return pairs


def conditions_of(pairs):
    return {name: condition for name, (condition, _) in pairs.items()}


def sample(pairs, index):
    """One sample of a batch, with the padding the batch gave it cut off."""

    def one(condition, length):
        values = condition.values[index : index + 1]
        along = values.movedim(2, 1) if not values.is_floating_point() else values
        cut = along[:, :length]
        mask = condition.mask[index : index + 1, :length]
        return Condition(cut.movedim(1, 2) if not values.is_floating_point() else cut, mask)

    lengths = {name: int(condition.mask[index].sum()) for name, (condition, _) in pairs.items()}
    return {name: tuple(one(c, lengths[name]) for c in pair) for name, pair in pairs.items()}


def test_the_tail_counts_only_where_it_is_asked_for():
    """Three codebooks, delayed by 0, 1 and 2, of five frames: 5, 4 and 3 codes without the tail."""
    conditions, codes = conditions_of(pairs_of(TEXT, 2)), torch.randint(16, (2, 3, 5))
    whole = torch.ones(2, 5, dtype=torch.bool)
    for tail, counted in ((True, [5, 5, 5]), (False, [5, 4, 3])):
        model = make(tail=tail)
        logits, valid = model.logits(codes, conditions)
        assert valid.sum(2).tolist() == [counted] * 2
        each = [
            F.cross_entropy(logits[:, k, :n].flatten(0, 1), codes[:, k, :n].flatten()) for k, n in enumerate(counted)
        ]
        losses = model.loss(codes, whole, conditions)
        torch.testing.assert_close(losses["loss"], torch.stack(each).mean())
        torch.testing.assert_close(losses["ce_2"], each[2])
    # a clip too short for its last codebook to be in time: the others alone make the loss
    losses = make(tail=False).loss(codes[:, :, :2], whole[:, :2], conditions)
    torch.testing.assert_close(losses["loss"], (losses["ce_0"] + losses["ce_1"]) / 2)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_code_sees_itself_or_what_follows(pattern):
    model = make(pattern=pattern)
    codes = torch.randint(16, (1, 3, 5))
    conditions = conditions_of(pairs_of(TEXT, 1))
    before, _ = model.logits(codes, conditions)
    steps = model.pattern.layout(5).steps
    for codebook in range(3):
        for frame in range(5):
            changed = codes.clone()
            changed[0, codebook, frame] = (changed[0, codebook, frame] + 1) % 16
            after, _ = model.logits(changed, conditions)
            same = (before == after).all(-1)[0]
            assert torch.isclose(before, after, atol=1e-6).all(-1)[0][steps <= steps[codebook, frame]].all()
            assert not same[steps > steps[codebook, frame]].any()


def test_loss_is_the_mean_of_each_codebook_over_the_frames_that_count():
    model = make()
    codes = torch.randint(16, (2, 3, 6))
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    conditions = conditions_of(pairs_of(TEXT, 2))
    losses = model.loss(codes, mask, conditions)
    logits, valid = model.logits(codes, conditions, mask)
    assert torch.equal(valid, mask[:, None].expand(-1, 3, -1))
    for k in range(3):
        expected = F.cross_entropy(logits[:, k][mask], codes[:, k][mask])
        torch.testing.assert_close(losses[f"ce_{k}"], expected)
    torch.testing.assert_close(losses["loss"], torch.stack([losses[f"ce_{k}"] for k in range(3)]).mean())


def test_padding_frames_change_nothing():
    model = make()
    codes = torch.randint(16, (1, 3, 8))
    mask = (torch.arange(8) < 5)[None]
    conditions = conditions_of(pairs_of(TEXT, 1))
    noise = torch.where(mask[:, None], codes, (codes + 3) % 16)
    alone = model.loss(codes[:, :, :5], mask[:, :5], conditions)
    torch.testing.assert_close(model.loss(codes, mask, conditions), alone)
    torch.testing.assert_close(model.loss(noise, mask, conditions), alone)


def test_nothing_but_padding_gives_a_finite_loss():
    losses = make().loss(torch.zeros(1, 3, 4).long(), torch.zeros(1, 4).bool(), conditions_of(pairs_of(TEXT, 1)))
    assert losses["loss"] == 0


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("fusion", ["cross", "prepend"])
def test_padding_of_a_condition_changes_nothing(positions, fusion):
    given = {"text": Given(ConditionSpec(dim=8), fusion)}
    model = make(given, positions=positions)
    codes = torch.randint(16, (4, 3, 7))
    pairs = pairs_of(given, 4)
    together, _ = model.logits(codes, conditions_of(pairs))
    for index in range(4):
        alone, _ = model.logits(codes[index : index + 1], conditions_of(sample(pairs, index)))
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_way_to_enter_matters(name):
    model = make(EVERYTHING)
    codes = torch.randint(16, (1, 3, 7))
    pairs = pairs_of(EVERYTHING, 1, length=3)
    conditions = conditions_of(pairs)
    before, _ = model.logits(codes, conditions)
    after, _ = model.logits(codes, {**conditions, name: pairs[name][1]})
    assert not torch.allclose(before, after, atol=1e-3)


def test_an_added_condition_reaches_the_step_that_predicts_its_frame():
    given = {"chords": Given(ConditionSpec(dim=4, frame_rate=50.0), "add")}
    model = make(given)
    codes = torch.randint(16, (1, 3, 6))
    values = torch.randn(1, 6, 4)
    changed = values.clone()
    changed[0, 4] += 1
    full = torch.ones(1, 6, dtype=torch.bool)
    before, _ = model.logits(codes, {"chords": Condition(values, full)})
    after, _ = model.logits(codes, {"chords": Condition(changed, full)})
    moved = (before - after).abs().amax(-1)[0] > 1e-5
    # with delays 0, 1, 2 frame 4 of the first codebook is predicted in the same step as frames 3 and 2 of the others
    assert moved.tolist() == [[False] * 4 + [True] * 2, [False] * 3 + [True] * 3, [False] * 2 + [True] * 4]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_cached_and_uncached_logits_agree_at_every_step(pattern, positions, monkeypatch):
    model = make(EVERYTHING, pattern=pattern, positions=positions)
    pairs = pairs_of(EVERYTHING, 3)
    runs = []
    draw = Sampling.draw

    def spy(self, logits, noise=None):
        runs[-1].append(logits)
        return draw(self, logits, noise)

    monkeypatch.setattr(Sampling, "draw", spy)
    codes = []
    for use_cache in (True, False):
        runs.append([])
        codes.append(model.generate(pairs, 9, seeds=[0, 1, 2], use_cache=use_cache).values)
    assert len(runs[0]) == len(runs[1]) == model.pattern.layout(9).length - 1
    torch.testing.assert_close(torch.stack(runs[0]), torch.stack(runs[1]), rtol=0, atol=1e-4)
    assert torch.equal(*codes)


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_same_seed_gives_the_same_codes_in_any_batch(positions):
    model = make(EVERYTHING, positions=positions)
    pairs = pairs_of(EVERYTHING, 8)
    seeds = [5, 6, 7, 8, 9, 10, 11, 5]
    together = model.generate(pairs, 30, seeds=seeds).values
    for index, seed in enumerate(seeds):
        alone = model.generate(sample(pairs, index), 30, seeds=[seed]).values
        assert torch.equal(alone[0], together[index])
    assert not torch.equal(together[0], together[7])


def test_another_seed_gives_other_codes():
    model, pairs = make(), pairs_of(TEXT, 1)
    assert not torch.equal(model.generate(pairs, 20, seeds=[0]).values, model.generate(pairs, 20, seeds=[1]).values)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_over_fitted_clips_are_generated_back(pattern, use_cache):
    """Four clips, told apart by their prompts, at batch 1 and together."""
    model, pairs, clips = over_fitted(pattern)
    together = model.generate(pairs, 12, seeds=range(4), sampling=GREEDY, use_cache=use_cache).values
    assert (together == clips).float().mean() >= 0.99
    for index in range(4):
        alone = model.generate(sample(pairs, index), 12, seeds=[0], sampling=GREEDY, use_cache=use_cache).values
        assert (alone[0] == clips[index]).float().mean() >= 0.99


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_prompt_is_continued(pattern):
    model, pairs, clips = over_fitted(pattern)
    for length in (1, 5, 11):
        codes = model.generate(pairs, 12, seeds=range(4), sampling=GREEDY, prefix=clips[:, :, :length]).values
        assert torch.equal(codes[:, :, :length], clips[:, :, :length])
        assert (codes == clips).float().mean() >= 0.99


def test_a_prompt_that_was_generated_is_continued_as_it_was():
    model, pairs = make(), pairs_of(TEXT, 2)
    codes = model.generate(pairs, 20, seeds=[3, 4]).values
    assert torch.equal(model.generate(pairs, 20, seeds=[3, 4], prefix=codes[:, :, :7]).values, codes)


_trained = {}


def over_fitted(pattern):
    if pattern not in _trained:
        torch.manual_seed(0)
        clips = torch.randint(16, (4, 3, 12))
        given = {"text": Given(ConditionSpec(dim=8), "cross")}
        model = make(given, width=64, pattern=pattern, condition_dropout=NO_DROPOUT).train()
        pairs = pairs_of(given, 4, length=4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
        for _ in range(50):
            loss = model.loss(clips, torch.ones(4, 12, dtype=torch.bool), conditions_of(pairs))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        _trained[pattern] = model.eval(), pairs, clips
    return _trained[pattern]


def test_special_codes_are_never_generated():
    model = make()
    with torch.no_grad():
        model.output_heads.weight.zero_()
    codes = model.generate(pairs_of(TEXT, 4), 40, seeds=range(4), sampling=Sampling(temperature=5.0, top_k=None)).values
    assert codes.min() == 0
    assert codes.max() == 15
    assert codes.dtype == torch.int64


def test_guidance_terms_are_the_sum_of_separate_predictions():
    given = {name: EVERYTHING[name] for name in ("text", "style")}
    model = make(given)
    pairs = pairs_of(given, 2)
    terms = nested_guidance(("style",), 3.0, 5.0)
    prefix = torch.randint(16, (2, 3, 8))
    # the last code of the last codebook is all that is left to predict after eight frames
    guided = model.generate(pairs, 9, seeds=[0, 0], prefix=prefix, guidance=terms, sampling=GREEDY).values
    null = {name: pair[1] for name, pair in pairs.items()}
    style = {"text": pairs["text"][1], "style": pairs["style"][0]}
    both, style, null = (model.logits(guided, c)[0] for c in (conditions_of(pairs), style, null))
    expected = (null + 3 * (style + 5 * (both - style) - null)).argmax(-1)
    assert torch.equal(guided[:, :, 8], expected[:, :, 8])


def test_guidance_of_weight_one_is_the_conditional_prediction():
    model, pairs = make(), pairs_of(TEXT, 2)
    plain = model.generate(pairs, 10, seeds=[0, 1], sampling=Sampling(guidance=1.0)).values
    assert torch.equal(model.generate(pairs, 10, seeds=[0, 1], guidance=[Term(None, 1.0)]).values, plain)
    assert not torch.equal(model.generate(pairs, 10, seeds=[0, 1], guidance=[Term((), 1.0)]).values, plain)


def test_fully_null_conditions_give_finite_logits():
    model = make(EVERYTHING)
    null = {name: pair[1] for name, pair in pairs_of(EVERYTHING, 2).items()}
    logits, _ = model.logits(torch.randint(16, (2, 3, 5)), null)
    assert logits.isfinite().all()
    codes = model.generate({name: (c, c) for name, c in null.items()}, 5, seeds=[0, 1]).values
    assert codes.shape == (2, 3, 5)


def test_a_stage_given_nothing_generates():
    model = make({})
    assert model.generate({}, 6, seeds=[0, 1]).values.shape == (2, 3, 6)


def test_conditions_are_dropped_per_sample_alone_and_together():
    given = {name: EVERYTHING[name] for name in ("text", "style")}
    model = make(given, condition_dropout=ConditionDropout(0.2, {"style": 0.5}))
    pairs = pairs_of(given, 4000)
    dropped = model.drop(pairs)
    text, style = (~dropped[name].mask.any(1) for name in ("text", "style"))
    assert text.float().mean() == pytest.approx(0.2, abs=0.03)
    assert style.float().mean() == pytest.approx(0.2 + 0.8 * 0.5, abs=0.03)
    assert style[text].all()
    assert torch.equal(dropped["text"].values[~text], pairs["text"][0].values[~text])


def test_progress_counts_every_step():
    seen = []
    make().generate(pairs_of(TEXT, 1), 5, seeds=[0], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(step, 7) for step in range(1, 8)]


def test_generating_leaves_the_training_mode_and_the_random_state_alone():
    model = make(dropout=0.5).train()
    model.conditioning.eval()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = model.generate(pairs_of(TEXT, 1), 5, seeds=[0]).values
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(model.generate(pairs_of(TEXT, 1), 5, seeds=[0]).values, first)
    assert model.training
    assert model.backbone.training
    assert not model.conditioning.training


def test_half_precision_weights_generate():
    model, pairs = make(EVERYTHING).bfloat16(), pairs_of(EVERYTHING, 2)
    assert model.generate(pairs, 5, seeds=[0, 1]).values.shape == (2, 3, 5)
    assert next(model.parameters()).dtype == torch.bfloat16


def test_training_with_lightning_and_a_conditioner_that_learns_along(tmp_path):
    torch.manual_seed(0)
    lookup = Lookup(dim=8, num_embeddings=64)
    model = make()
    model.joint["text"] = lookup
    before = lookup.embeddings.weight.detach().clone()
    texts = ["slow organ", None, "fast strings, loud", "slow flute"]
    batch = StageBatch(
        torch.randint(16, (4, 3, 6)), torch.ones(4, 6, dtype=torch.bool), {"text": lookup.prepare(told(texts))}
    )
    trainer = L.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    batches = torch.utils.data.DataLoader([batch] * 3, batch_size=None)
    trainer.fit(model, batches, batches)
    assert {"train/loss", "train/ce_0", "train/ce_2", "val/loss"} <= trainer.callback_metrics.keys()
    assert not torch.equal(lookup.embeddings.weight, before)


def test_saved_and_loaded_it_generates_the_same(tmp_path):
    model = make(EVERYTHING, delays=(0, 2, 3), sampling=Sampling(temperature=0.9, top_k=5), positions="rotary")
    model.save(tmp_path / "stage")
    loaded = Part.load(tmp_path / "stage")
    assert loaded.sampling == model.sampling
    pairs = pairs_of(EVERYTHING, 2)
    assert torch.equal(loaded.generate(pairs, 8, seeds=[0, 1]).values, model.generate(pairs, 8, seeds=[0, 1]).values)


def test_builds_without_memory():
    with torch.device("meta"):
        model = Autoregressive(
            TARGET, EVERYTHING, backbone=small({"positions": "rotary", "qk_norm": True, "norm": "rms"})
        )
    assert all(p.is_meta for p in model.parameters())


def test_mistakes_are_named():
    latents = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=50.0, dim=64)
    with pytest.raises(ValueError, match="generates codes, but its target has none"):
        Autoregressive(latents, {})
    with pytest.raises(ValueError, match="delays has 2 values for 3 codebooks"):
        make(delays=(0, 1))
    model, pairs = make(), pairs_of(TEXT, 2)
    with pytest.raises(ValueError, match="text has 2 samples for 3 seeds"):
        model.generate(pairs, 5, seeds=[0, 1, 2])
    with pytest.raises(ValueError, match=r"conditions for \[\], but the stage is given \['text'\]"):
        model.generate({}, 5, seeds=[0, 1])
    with pytest.raises(ValueError, match="5 of 5 frames: nothing is left"):
        model.generate(pairs, 5, seeds=[0, 1], prefix=torch.zeros(2, 3, 5).long())
    with pytest.raises(ValueError, match=r"the prefix is \[1, 3, 2\], not \[2, 3, frames\]"):
        model.generate(pairs, 5, seeds=[0, 1], prefix=torch.zeros(1, 3, 2).long())


@pytest.mark.parametrize("pattern", ["delay", "flatten"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_codes_of_an_earlier_stage_are_found_at_their_time_however_long_the_clip(pattern, positions):
    """Every code is a function of the semantic code at its time; both stages have other rates."""
    semantic = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=25.0, num_codebooks=1, cardinality=8)
    target = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=50.0, num_codebooks=2, cardinality=8)
    given = {"semantic": Given(semantic.as_condition(), Autoregressive.default_fusion(semantic.as_condition()))}
    torch.manual_seed(0)
    backbone = Transformer(width=64, depth=1, num_heads=4, positions=positions, block=BlockConfig(norm="rms"))
    stage = Autoregressive(target, given, backbone=backbone, pattern=pattern, condition_dropout=NO_DROPOUT)
    tables = torch.stack([torch.randperm(8) for _ in range(4)]).view(2, 2, 8)  # codebook, half of a semantic frame

    def clips(batch, frames):
        codes = torch.randint(8, (batch, 1, frames // 2))
        condition = Condition.of(codes, torch.ones(batch, frames // 2, dtype=torch.bool))
        return tables[:, :, codes[:, 0]].permute(2, 0, 3, 1).flatten(2), {"semantic": (condition, condition.absent())}

    optimizer = torch.optim.AdamW(stage.parameters(), lr=6e-3)
    steps = 350 if positions == "relative" else 220  # sharp biases have a long way to go from zero
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        codes, pairs = clips(16, 16)
        loss = stage.loss(codes, torch.ones(16, 16, dtype=torch.bool), conditions_of(pairs))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for frames in (6, 10, 16):
        codes, pairs = clips(32, frames)
        made = stage.generate(pairs, frames, seeds=range(32), sampling=GREEDY).values
        assert (made == codes).float().mean() >= 0.99, frames
