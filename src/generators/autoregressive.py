"""A stage that generates codes step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.contracts import Condition, ConditionSpec, Generated, Given, RepresentationSpec
from ..core.registry import register
from ..layers.conditioning import Conditioning, Context, Interpolation
from ..layers.guidance import Term, checked_terms, classifier_free, combine, conditions_of
from ..layers.patterns import Layout, Pattern, PatternName
from ..layers.positions import position_ids
from ..layers.sampling import GumbelNoise, Sampling, evaluating
from ..layers.transformer import scaled_normal_
from .backbones.base import Backbone, BackboneSetting, SequenceContext
from .backbones.transformer import Transformer
from .base import DEFAULT_DROPOUT, ConditionDropout, Generator
from .codebooks import Codebooks

DEFAULT_SAMPLING = Sampling()


@register("generator", "autoregressive")
class Autoregressive(Generator):
    """A causal network predicts codes step by step, codebooks laid out by a pattern (MusicGen, MusicLM).

    At every step the embeddings of all codebooks are summed, and one linear head per codebook predicts the next
    step. Conditions are attended to (``cross``), come before the sequence (``prepend``), or are added to the step
    that predicts their frame (``add``). The defaults are MusicGen-small's (arXiv 2306.05284, audiocraft ``lm.py``), but
    for ``tail`` and the probability of losing all conditions, which is 0.3 there.

    A later stage can be given the states from which the first code of each frame was predicted, ``hidden``.

    Args:
        target: The representation it generates; must be discrete.
        given: By name, what it is given and how each enters.
        backbone: The network; ``None`` takes a transformer with its defaults.
        pattern: Order of the codebooks: ``delay``, ``parallel``, ``flatten``, ``partial_flatten``, ``coarse_first`` or
            ``musiclm``.
        delays: Frames by which each codebook is late; ``None`` takes the pattern's own.
        tail: Whether codes that only their delay puts past the end of a clip count in the loss. MusicGen's do not
            (audiocraft keeps the valid steps only), and so it never learns how the late codebooks of a clip end.
        ends: Whether it learns where clips end, and ends by itself when it generates: the frames that are asked for are
            then the most there can be, and each sample has a length of its own.
        interpolation: How aligned conditions that are added come to the target's frame rate: ``linear`` or ``nearest``.
        sampling: How codes are drawn where a caller does not say.
        checkpointing: Whether to recompute the backbone's layers in the backward pass, which saves memory.
        condition_dropout: How often it does without what it is given in training.

    Raises:
        ValueError: The target is not discrete, or a value is out of range.
    """

    discrete: ClassVar[bool] = True
    fusions: ClassVar[tuple[str, ...]] = ("cross", "prepend", "add")

    def __init__(
        self,
        target: RepresentationSpec,
        given: dict[str, Given],
        *,
        backbone: Backbone | None = None,
        pattern: PatternName = "delay",
        delays: tuple[int, ...] | None = None,
        tail: bool = True,
        ends: bool = False,
        interpolation: Interpolation = "linear",
        sampling: Sampling = DEFAULT_SAMPLING,
        checkpointing: bool = False,
        condition_dropout: ConditionDropout = DEFAULT_DROPOUT,
    ) -> None:
        super().__init__(target, given, condition_dropout=condition_dropout)
        if target.num_codebooks is None or target.cardinality is None:
            raise ValueError(f"an autoregressive stage generates codes, and its target has none ({target})")
        self.num_codebooks = target.num_codebooks
        self.codebooks = Codebooks(target, ends)
        self.pattern = Pattern.named(pattern, target.num_codebooks, None if delays is None else tuple(delays))
        if ends and self.pattern.delays[0] > min(self.pattern.delays):
            raise ValueError(f"the first codebook says where a clip ends, so none may precede it: not delays {delays}")
        self.tail = tail
        self.sampling = sampling

        backbone = backbone or Transformer()
        self.use(backbone)
        width = backbone.width
        self.conditioning = Conditioning(self.given, width, target.frame_rate, interpolation)
        self.embeddings = nn.Embedding(self.codebooks.embedded, width)
        cross = any(g.fusion == "cross" for g in self.given.values())
        backbone.build(BackboneSetting(cross=cross, checkpointing=checkpointing))
        self.backbone = backbone
        self.output_heads = nn.Linear(width, self.codebooks.predicted, bias=False)
        scaled_normal_(self.embeddings.weight, width)
        scaled_normal_(self.output_heads.weight, width)

    def logits(
        self, codes: Tensor, conditions: dict[str, Condition], mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits ``[B, K, T, ids]`` of every code given those before it, and which count, ``[B, K, T]``.

        Args:
            codes: ``[B, K, T]``.
            conditions: By given name.
            mask: ``[B, T]`` bool, false on padding; ``None`` where nothing pads. A stage that ends by itself predicts
                the end, too, in the first codebook and the frame after the last.
        """
        layout, hidden = self._hidden(codes, conditions, mask)
        weight = self.codebooks.weights(self.output_heads.weight)
        logits = torch.einsum("bktd,kcd->bktc", layout.predicted(hidden), weight)
        counts = torch.ones_like(layout.timely) if self.tail else layout.timely
        present = codes.new_ones(codes.shape[0], codes.shape[2], dtype=torch.bool) if mask is None else mask
        valid = present[:, None] & counts
        if self.codebooks.end is not None:
            valid[:, 0] |= self.codebooks.with_end(codes, present)[1]
        return self.codebooks.allow(logits, books=1), valid

    def _hidden(self, codes: Tensor, conditions: dict[str, Condition], mask: Tensor | None) -> tuple[Layout, Tensor]:
        """The layout of the codes, and what the backbone makes of each step but the last, ``[B, N, width]``."""
        layout = self.pattern.layout(codes.shape[2], codes.device)
        context = self.conditioning(conditions, codes.shape[2])
        sequence = layout.build(codes, self.codebooks.special, mask)
        if self.codebooks.end is not None and mask is not None:
            at = self.codebooks.with_end(codes, mask)[1]
            place = at[:, layout.frames[0]] & layout.valid[0]
            sequence[:, 0] = sequence[:, 0].masked_fill(place, self.codebooks.end)
        return layout, _Steps(self, layout, context).all(sequence[:, :, :-1])

    def loss(self, target: Tensor, mask: Tensor, conditions: dict[str, Condition]) -> dict[str, Tensor]:
        """Cross-entropy in nats: ``ce_k`` of each codebook over the codes that count, and their mean, ``loss``."""
        logits, valid = self.logits(target, conditions, mask)
        codes, _ = self.codebooks.with_end(target, mask)
        entropy = self.codebooks.cross_entropy(logits, codes, valid)
        counts = valid.sum(dim=(0, 2))
        per_codebook = entropy.sum(dim=(0, 2)) / counts.clamp(min=1)
        loss = per_codebook.sum() / counts.count_nonzero().clamp(min=1)
        return {"loss": loss, **{f"ce_{k}": ce for k, ce in enumerate(per_codebook.unbind())}}

    @classmethod
    def default_fusion(cls, spec: ConditionSpec) -> str:
        """Codes that are aligned in time are prepended, embeddings that are so are added, the rest is attended to."""
        if spec.frame_rate is None:
            return "cross"
        return "prepend" if spec.dim is None else "add"

    @property
    def side_outputs(self) -> dict[str, ConditionSpec]:
        """The states from which the first code of each frame is predicted: ``hidden``."""
        return {"hidden": ConditionSpec(dim=self.backbone.width, frame_rate=self.target.frame_rate)}

    def compute_outputs(self, target: Tensor, mask: Tensor, conditions: dict[str, Condition]) -> dict[str, Condition]:
        """The states from which the first code of each frame is predicted, ``hidden``."""
        layout, hidden = self._hidden(target, conditions, mask)
        return {"hidden": Condition(hidden[:, layout.steps[0] - 1].float() * mask[..., None], mask)}

    @torch.no_grad()
    def generate(
        self,
        conditions: dict[str, tuple[Condition, Condition]],
        frames: int,
        *,
        seeds: Sequence[int],
        prefix: Tensor | None = None,
        guidance: Sequence[Term] | None = None,
        progress: Callable[[int, int], None] | None = None,
        sampling: Sampling | None = None,
        use_cache: bool = True,
        outputs: Sequence[str] = (),
    ) -> Generated:
        """Codes ``[B, K, frames]``, one sample per seed; the same seed gives the same sample in any batch.

        Args:
            conditions: Per given name the pair (condition, null), of batch ``len(seeds)``.
            frames: Length including the prefix; the most of a stage that ends by itself.
            seeds: One per sample.
            prefix: Codes ``[B, K, P]`` with ``P < frames`` that the result starts with.
            guidance: Terms; ``None`` for classifier-free guidance at the scale of ``sampling``.
            progress: Called with (steps done, steps in all).
            sampling: How codes are drawn; ``None`` for the stage's own.
            use_cache: Whether to keep the backbone's state between steps. Without it every step computes all of the
                sequence again: the same result, slowly.
            outputs: Side outputs that are wanted: ``hidden``, under the conditions, without guidance.

        Raises:
            ValueError: Batches, names or lengths do not fit together.
        """
        sampling = sampling or self.sampling
        terms = checked_terms(classifier_free(sampling.guidance) if guidance is None else guidance, list(self.given))
        self.check_request(conditions, frames, len(seeds), prefix)
        layout = self.pattern.layout(frames, self.embeddings.weight.device)
        sequence, known = self._start(layout, len(seeds), frames, prefix)
        first = int((layout.valid & ~known).any(0).long().argmax())
        noise = GumbelNoise(seeds, (self.num_codebooks, self.codebooks.most), sequence.device)
        ending = _Ending(self.codebooks, layout, len(seeds), frames)
        with evaluating(self):
            context = self.conditioning(conditions_of(terms, conditions), frames)
            steps = _Steps(self, layout, context, len(terms))
            if use_cache:
                steps.keep()
            finite = torch.ones((), dtype=torch.bool, device=sequence.device)
            for step in range(first, layout.length):
                hidden = steps.last(sequence[:, :, :step])
                logits = self.codebooks.split(self.output_heads(hidden).float())
                finite &= logits.isfinite().all()
                logits = ending.allow(self.codebooks.allow(combine(logits, terms)), step)
                drawn = sampling.draw(logits, noise.at(step) if sampling.temperature else None)
                free = layout.valid[:, step] & ~known[:, step]
                sequence[:, :, step] = torch.where(free, ending.note(drawn, free, step), sequence[:, :, step])
                if progress is not None:
                    progress(step + 1 - first, layout.length - first)
                if ending.over(step):
                    break
            if not finite:  # asked once: each time would wait for the device
                raise FloatingPointError("logits that are not finite numbers")
            made = ending.result(sequence)
            if outputs:
                kept = {name: condition for name, (condition, _) in conditions.items()}
                states = self.compute_outputs(made.values, made.mask, kept)
                made.outputs = {name: states[name] for name in outputs}
        return made

    def _start(self, layout: Layout, batch: int, frames: int, prefix: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sequence ``[B, K, S]``, special ids but for the prefix, and where that is, ``[K, S]``."""
        given = 0 if prefix is None else prefix.shape[2]
        known = layout.valid & (layout.frames < given)
        shape = (batch, self.num_codebooks, frames - given)
        rest = torch.zeros(shape, dtype=torch.long, device=known.device)
        codes = rest if prefix is None else torch.cat([prefix.to(known.device), rest], dim=2)
        special = self.codebooks.special
        return torch.where(known, layout.build(codes, special), special), known


class _Ending:
    """Where samples end that say so themselves; without an id for it, all of them after the last frame."""

    def __init__(self, codebooks: Codebooks, layout: Layout, batch: int, frames: int) -> None:
        self.codebooks, self.layout = codebooks, layout
        self.lengths = torch.full((batch,), frames, device=layout.steps.device)
        self.frames = frames

    def allow(self, logits: Tensor, step: int) -> Tensor:
        """Logits ``[B, K, ids]`` that leave at least one frame."""
        if self.codebooks.end is not None:
            logits[:, 0, self.codebooks.end].masked_fill_(self.layout.frames[0, step] == 0, -torch.inf)
        return logits

    def note(self, drawn: Tensor, free: Tensor, step: int) -> Tensor:
        """Codes ``[B, K]`` drawn at a step, without those that would stand after the end."""
        if self.codebooks.end is None:
            return drawn
        frames = self.layout.frames[:, step]
        ends = free[0] & (drawn[:, 0] == self.codebooks.end) & (frames[0] < self.lengths)
        self.lengths = torch.where(ends, frames[0], self.lengths)
        after = frames >= self.lengths[:, None]
        after[:, 0] &= ~ends  # the end itself is seen by the steps that follow
        return drawn.masked_fill(after, self.codebooks.special)

    def over(self, step: int) -> bool:
        """Whether nothing is left to draw."""
        if self.codebooks.end is None or bool((self.lengths == self.frames).any()):
            return False
        after = self.layout.frames[:, step + 1 :] < self.lengths.max()
        return not bool((self.layout.valid[:, step + 1 :] & after).any())

    def result(self, sequence: Tensor) -> Generated:
        """Codes ``[B, K, frames]``, 0 after a sample's last frame, and the lengths."""
        made = Generated(self.layout.revert(sequence), self.lengths)
        if self.codebooks.end is not None:
            made.values = made.values.masked_fill(~made.mask[:, None], 0)
        return made


class _Steps:
    """What the backbone makes of a sequence of steps: of all at once, or of the last one, with or without a state.

    Whatever does not depend on the codes is worked out once: positions, and what is added to each step.
    """

    def __init__(self, stage: Autoregressive, layout: Layout, context: Context, copies: int = 1) -> None:
        self.stage = stage
        self.context = context
        self.copies = copies
        self.state: Any = None
        self.count = layout.length - 1
        self.prefix = 0 if context.prefix is None else context.prefix.shape[1]
        # The place of a step adds what belongs to the frame it predicts, which is in the step after it.
        self.added = None if context.added is None else context.added[:, layout.newest[1:]]
        mask: Tensor | None = None
        if context.prefix_mask is not None:
            steps = context.prefix_mask.new_ones(len(context.prefix_mask), self.count)
            mask = torch.cat([context.prefix_mask, steps], dim=1)
            ids = self._ids(layout, mask, context.prefix_frames)
        else:
            ids = torch.arange(self.count, device=layout.steps.device)[None]
        self.sequence = SequenceContext(ids, mask, context.cross, context.cross_mask)

    def _ids(self, layout: Layout, mask: Tensor, frames: Tensor | None) -> Tensor:
        """Positions ``[B, prefix + steps]``, places that pad left out.

        What belongs to a frame has the position of the step that predicts this frame's first code: a step finds it at
        the same distance however long the prefix is.
        """
        if frames is None:
            return position_ids(mask)
        apart = mask.clone()
        apart[:, : self.prefix] &= frames < 0
        ids = position_ids(apart).float()
        first = apart[:, : self.prefix].sum(1, keepdim=True)
        per_frame = layout.steps[0, 1] - layout.steps[0, 0] if layout.steps.shape[1] > 1 else 1
        ids[:, : self.prefix] = torch.where(frames < 0, ids[:, : self.prefix], first + frames * per_frame)
        return ids

    def keep(self) -> None:
        """Compute each place once from now on."""
        self.state = self.stage.backbone.new_state(self.sequence)

    def all(self, sequence: Tensor) -> Tensor:
        """``[B, K, N]`` to ``[B, N, width]``."""
        x = self._embed(sequence, 0)
        if self.context.prefix is not None:
            x = torch.cat([self.context.prefix.to(x.dtype), x], dim=1)
        return self.stage.backbone(x, self.sequence, self.state)[:, self.prefix :]

    def last(self, sequence: Tensor) -> Tensor:
        """``[B, K, N]`` to the last of the hidden states, ``[copies · B, width]``."""
        if self.state is None or self.state.length == 0:
            return self.all(sequence)[:, -1]
        start = self.state.length - self.prefix
        return self.stage.backbone(self._embed(sequence[:, :, start:], start), self.sequence, self.state)[:, -1]

    def _embed(self, sequence: Tensor, start: int) -> Tensor:
        x = self.stage.embeddings(self.stage.codebooks.places(sequence)).sum(1)
        if self.copies > 1:
            x = x.repeat(self.copies, 1, 1)
        return x if self.added is None else x + self.added[:, start : start + x.shape[1]]
