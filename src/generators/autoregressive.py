"""A stage that generates codes step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.contracts import Condition, ConditionSpec, Generated, Given, RepresentationSpec
from ..core.processes import mean_of_all
from ..core.registry import register
from ..layers.conditioning import DEFAULT_PREFIX, Conditioning, Context, Interpolation, Prefix
from ..layers.guidance import Term, checked_terms, classifier_free, combine, conditions_of, double_weights
from ..layers.patterns import Layout, Pattern, PatternName
from ..layers.positions import position_ids
from ..layers.sampling import GumbelNoise, Sampling, evaluating
from ..layers.transformer_blocks import scaled_normal_
from .backbones.base import Backbone, SequenceContext
from .backbones.transformer import Transformer
from .base import DEFAULT_DROPOUT, ConditionDropout, Delivery, Generator
from .codebooks import Codebooks, Outputs
from .network import NetworkSetting

DEFAULT_SAMPLING = Sampling()


@register("generator", "autoregressive")
class Autoregressive(Generator):
    """A causal network that predicts codes step by step, with codebooks interleaved by a pattern (MusicGen, MusicLM).

    At every step the embeddings of all codebooks are summed, and one linear head per codebook predicts the next step.
    Conditions enter by cross-attention (``cross``), before the sequence (``prepend``), or added to the step that
    predicts their frame (``add``). The defaults are MusicGen-small's (arXiv 2306.05284, audiocraft ``lm.py``), except
    for ``tail`` and the probability of losing all conditions, which is 0.3 there.

    A later stage can be given ``hidden``, the states from which the first code of each frame was predicted.

    Args:
        target: Spec of the representation that the stage generates; must be discrete.
        given: The conditions of the stage by name, each with its spec and fusion.
        backbone: The network; ``None`` takes a transformer with its defaults.
        pattern: Order of the codebooks: ``delay``, ``parallel``, ``flatten``, ``partial_flatten``, ``coarse_first`` or
            ``musiclm``.
        delays: Delay of each codebook in frames; ``None`` takes the pattern's own.
        tail: Whether codes that their delay moves past the end of a clip count in the loss. MusicGen's do not
            (audiocraft keeps the valid steps only), and so it never learns how the late codebooks of a clip end.
        ends: Whether the stage learns where clips end, and ends by itself in generation: the requested number of frames
            is then a maximum, and each sample has a length of its own.
        interpolation: Interpolation of conditions with fusion ``add`` to the target's frame rate: ``linear`` or
            ``nearest``.
        plain_prefix: Whether a prefix is as in MusicGen-melody: its places are numbered in their order, whatever frames
            they belong to, padding in it counts and is attended to, and a clip that is shorter than the window has the
            prefix of a whole window.
        prefix: How conditions form a prefix.
        sampling: Default sampling options.
        checkpointing: Whether to recompute the backbone's layers in the backward pass, which saves memory.
        condition_dropout: How often the stage loses conditions in training.

    Raises:
        ValueError: The target is not discrete, or a value is out of range.
    """

    discrete: ClassVar[bool] = True
    stepwise: ClassVar[bool] = True
    outer_layers: ClassVar[tuple[str, ...]] = (*Generator.outer_layers, "embeddings.", "output_heads.")
    fusions: ClassVar[tuple[str, ...]] = ("cross", "prepend", "add")
    delivers: ClassVar[bool] = True

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
        plain_prefix: bool = False,
        prefix: Prefix = DEFAULT_PREFIX,
        sampling: Sampling = DEFAULT_SAMPLING,
        checkpointing: bool = False,
        condition_dropout: ConditionDropout = DEFAULT_DROPOUT,
    ) -> None:
        super().__init__(target, given, condition_dropout=condition_dropout)
        if target.num_codebooks is None or target.cardinality is None:
            raise ValueError(f"an autoregressive stage generates codes, but its target has none ({target})")
        self.num_codebooks = target.num_codebooks
        self.codebooks = Codebooks(target, ends)
        self.pattern = Pattern.named(pattern, target.num_codebooks, None if delays is None else tuple(delays))
        if ends and self.pattern.delays[0] > min(self.pattern.delays):
            raise ValueError(f"the end is in the first codebook, so no other may precede it: change delays {delays}")
        self.tail, self.plain_prefix = tail, plain_prefix
        self.sampling = self.checked_sampling(sampling)

        backbone = backbone or Transformer()
        self.use(backbone)
        width = backbone.width
        self.conditioning = Conditioning(self.given, width, target.frame_rate, interpolation, prefix)
        self.embeddings = nn.Embedding(self.codebooks.embedded, width)
        cross = any("cross" in g.fusions for g in self.given.values())
        backbone.build(NetworkSetting(cross=cross, checkpointing=checkpointing))
        self.backbone = backbone
        self.output_heads = nn.Linear(width, self.codebooks.predicted, bias=False)
        scaled_normal_(self.embeddings.weight, width)
        scaled_normal_(self.output_heads.weight, width)

    def logits(
        self, codes: Tensor, conditions: dict[str, Condition], mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits ``[B, K, T, ids]`` of every code given those before it, and which of them count, ``[B, K, T]``.

        Args:
            codes: Codes ``[B, K, T]``.
            conditions: Conditions by given name.
            mask: ``[B, T]`` bool, false on padding; ``None`` means no padding. A stage that ends by itself also
                predicts the end, in the first codebook and the frame after the last.
        """
        outputs, valid = self._outputs(codes, conditions, mask)
        logits = outputs.logits(self.codebooks.weights(outputs.table))
        return self.codebooks.allow(logits, books=1), valid

    def _outputs(self, codes: Tensor, conditions: dict[str, Condition], mask: Tensor | None) -> tuple[Outputs, Tensor]:
        """What the logits of :meth:`logits` are computed from, and which of them count, ``[B, K, T]``."""
        layout, hidden = self._hidden(codes, conditions, mask)
        counts = torch.ones_like(layout.timely) if self.tail else layout.timely
        present = codes.new_ones(codes.shape[0], codes.shape[2], dtype=torch.bool) if mask is None else mask
        valid = present[:, None] & counts
        if self.codebooks.end is not None:
            valid[:, 0] |= self.codebooks.with_end(codes, present)[1]
        return Outputs(hidden, layout, self._table()), valid

    def _table(self) -> Tensor:
        """The output table ``[predicted, width]``, with what an attached adapter adds to it."""
        heads = self.output_heads
        if isinstance(heads, nn.Linear):
            return heads.weight
        # the weights are what the layer returns for unit vectors; its dropout is then the same in all places
        return heads(torch.eye(self.backbone.width, dtype=heads.weight.dtype, device=heads.weight.device)).mT

    def _hidden(self, codes: Tensor, conditions: dict[str, Condition], mask: Tensor | None) -> tuple[Layout, Tensor]:
        """The layout of the codes, and the hidden states ``[B, N, width]`` of each step but the last."""
        layout = self.pattern.layout(codes.shape[2], codes.device)
        context = self.conditioning(conditions, codes.shape[2])
        sequence = layout.build(codes, self.codebooks.special, mask)
        if self.codebooks.end is not None and mask is not None:
            at = self.codebooks.with_end(codes, mask)[1]
            place = at[:, layout.frames[0]] & layout.valid[0]
            sequence[:, 0] = sequence[:, 0].masked_fill(place, self.codebooks.end)
        return layout, _Steps(self, layout, context).all(sequence[:, :, :-1])

    def loss(self, target: Tensor, mask: Tensor, conditions: dict[str, Condition]) -> dict[str, Tensor]:
        """Cross-entropy in nats: ``ce_k`` of each codebook, over the codes that count, and their mean, ``loss``."""
        outputs, valid = self._outputs(target, conditions, mask)
        codes, _ = self.codebooks.with_end(target, mask)
        entropy = self.codebooks.cross_entropy(outputs, codes, valid)
        counts = valid.sum(dim=(0, 2))
        if self.training:
            counts = mean_of_all(counts)
        per_codebook = entropy.sum(dim=(0, 2)) / counts.clamp(min=1)
        loss = per_codebook.sum() / counts.count_nonzero().clamp(min=1)
        return {"loss": loss, **{f"ce_{k}": ce for k, ce in enumerate(per_codebook.unbind())}}

    def outline_step(self, examples: int, seconds: float) -> Callable[[], Tensor]:
        """The loss of a batch."""
        self.pattern.layout(self.target.frames(seconds))  # is computed once, from values
        return super().outline_step(examples, seconds)

    @classmethod
    def default_fusion(cls, spec: ConditionSpec) -> str:
        """``prepend`` for codes that are aligned in time, ``add`` for aligned embeddings, ``cross`` for all others."""
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
        delivery: Delivery | None = None,
    ) -> Generated:
        """Codes ``[B, K, frames]``, one sample per seed; the same seed gives the same sample in any batch.

        Args:
            conditions: The pair (condition, null) of each given name, with batch size ``len(seeds)``.
            frames: Length including the prefix; the maximum length for a stage that ends by itself.
            seeds: One seed per sample.
            prefix: Codes ``[B, K, P]`` with ``P < frames`` that the result starts with.
            guidance: Guidance terms; ``None`` takes the classifier-free or double guidance of ``sampling``.
            progress: Called with (steps done, total steps).
            sampling: Sampling options; ``None`` takes the stage's own.
            use_cache: Whether to keep the backbone's state between steps. Without it, every step recomputes the whole
                sequence: the result is the same, but takes longer.
            outputs: Requested side outputs: ``hidden``, computed under the conditions, without guidance.
            delivery: Delivery of frames as soon as all their codes are drawn.

        Raises:
            ValueError: Batches, names or lengths do not fit together.
        """
        sampling = sampling or self.sampling
        self.check_request(conditions, frames, len(seeds), prefix)
        terms, weights = self._guidance(guidance, sampling, {name: pair[0] for name, pair in conditions.items()})
        layout = self.pattern.layout(frames, self.embeddings.weight.device)
        sequence, known = self._start(layout, len(seeds), frames, prefix)
        first = int((layout.valid & ~known).any(0).long().argmax())
        noise = GumbelNoise(seeds, (self.num_codebooks, self.codebooks.most), sequence.device)
        ending = _Ending(self.codebooks, layout, len(seeds), frames)
        delivered = None if delivery is None else _Delivered(delivery, layout, ending, first)
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
                logits = ending.allow(self.codebooks.allow(combine(logits, terms, weights)), step)
                drawn = sampling.draw(logits, noise.at(step) if sampling.temperature else None)
                free = layout.valid[:, step] & ~known[:, step]
                sequence[:, :, step] = torch.where(free, ending.note(drawn, free, step), sequence[:, :, step])
                if delivered is not None and step == delivered.due:
                    delivered.send(sequence)
                if progress is not None:
                    progress(step + 1 - first, layout.length - first)
                if ending.over(step):
                    break
            if not finite:  # checked once: each check waits for the device
                raise FloatingPointError("the logits contain values that are not finite numbers")
            made = ending.result(sequence)
            if outputs:
                kept = {name: condition for name, (condition, _) in conditions.items()}
                states = self.compute_outputs(made.values, made.mask, kept)
                made.outputs = {name: states[name] for name in outputs}
        return made

    def _guidance(
        self, guidance: Sequence[Term] | None, sampling: Sampling, conditions: dict[str, Condition]
    ) -> tuple[list[Term], Tensor | None]:
        """The terms of guidance, with their weights ``[terms, B]`` if these differ between samples."""
        if guidance is None and sampling.inner:
            return double_weights((sampling.guidance, sampling.inner_guidance), sampling.inner, conditions)
        terms = classifier_free(sampling.guidance) if guidance is None else guidance
        return checked_terms(terms, list(self.given)), None

    def _start(self, layout: Layout, batch: int, frames: int, prefix: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sequence ``[B, K, S]`` of special ids after the prefix, and the places ``[K, S]`` of the prefix."""
        given = 0 if prefix is None else prefix.shape[2]
        known = layout.valid & (layout.frames < given)
        shape = (batch, self.num_codebooks, frames - given)
        rest = torch.zeros(shape, dtype=torch.long, device=known.device)
        codes = rest if prefix is None else torch.cat([prefix.to(known.device), rest], dim=2)
        special = self.codebooks.special
        return torch.where(known, layout.build(codes, special), special), known


class _Ending:
    """Where samples end: at their end id or, in a stage without one, after the last frame."""

    def __init__(self, codebooks: Codebooks, layout: Layout, batch: int, frames: int) -> None:
        self.codebooks, self.layout = codebooks, layout
        self.lengths = torch.full((batch,), frames, device=layout.steps.device)
        self.frames = frames

    def allow(self, logits: Tensor, step: int) -> Tensor:
        """Logits ``[B, K, ids]`` under which a sample has at least one frame."""
        if self.codebooks.end is not None:
            logits[:, 0, self.codebooks.end].masked_fill_(self.layout.frames[0, step] == 0, -torch.inf)
        return logits

    def note(self, drawn: Tensor, free: Tensor, step: int) -> Tensor:
        """The codes ``[B, K]`` drawn at a step, without those after the end."""
        if self.codebooks.end is None:
            return drawn
        frames = self.layout.frames[:, step]
        ends = free[0] & (drawn[:, 0] == self.codebooks.end) & (frames[0] < self.lengths)
        self.lengths = torch.where(ends, frames[0], self.lengths)
        after = frames >= self.lengths[:, None]
        after[:, 0] &= ~ends  # later steps see the end itself
        return drawn.masked_fill(after, self.codebooks.special)

    def over(self, step: int) -> bool:
        """Whether all samples have ended."""
        if self.codebooks.end is None or bool((self.lengths == self.frames).any()):
            return False
        after = self.layout.frames[:, step + 1 :] < self.lengths.max()
        return not bool((self.layout.valid[:, step + 1 :] & after).any())

    def result(self, sequence: Tensor, frames: int | None = None) -> Generated:
        """Codes ``[B, K, frames]``, 0 after a sample's last frame, and the lengths; ``None`` returns all frames."""
        codes = self.layout.revert(sequence, frames)
        made = Generated(codes, self.lengths.clamp(max=codes.shape[2]))
        if self.codebooks.end is not None:
            made.values = made.values.masked_fill(~made.mask[:, None], 0)
        return made


class _Delivered:
    """What is delivered of a generation: frames whose codes of all codebooks are drawn.

    Attributes:
        due: The step after which frames are delivered next; 0 after the last.
    """

    def __init__(self, delivery: Delivery, layout: Layout, ending: _Ending, first: int) -> None:
        self.receive, self.ending = delivery.receive, ending
        complete = layout.steps.amax(0).cummax(0).values.tolist()  # the step that completes each frame and all before
        dues = [(complete[n - 1], n) for n in range(delivery.every, len(complete), delivery.every)]
        self._dues = iter(sorted({step: n for step, n in dues if step >= first}.items()))
        self.due: int
        self.due, self._frames = next(self._dues, (0, 0))

    def send(self, sequence: Tensor) -> None:
        """Deliver the frames that are complete in a sequence ``[B, K, S]``."""
        self.receive(self.ending.result(sequence, self._frames))
        self.due, self._frames = next(self._dues, (0, 0))


class _Steps:
    """Hidden states of a sequence of steps, of all steps at once or of the last one, with or without a cache.

    What does not depend on the codes is computed once: positions, and what is added to each step.
    """

    def __init__(self, stage: Autoregressive, layout: Layout, context: Context, copies: int = 1) -> None:
        self.stage = stage
        self.context = context
        self.copies = copies
        self.state: Any = None
        self.count = layout.length - 1
        self.prefix = 0 if context.prefix is None else context.prefix.shape[1]
        # A step adds the condition of the frame that it predicts, which is in the next step.
        self.added = None if context.added is None else context.added[:, layout.newest[1:]]
        mask: Tensor | None = None
        if context.prefix_mask is not None and not stage.plain_prefix:
            steps = context.prefix_mask.new_ones(len(context.prefix_mask), self.count)
            mask = torch.cat([context.prefix_mask, steps], dim=1)
            ids = self._ids(layout, mask, context.prefix_frames)
        else:
            ids = torch.arange(self.prefix + self.count, device=layout.steps.device)[None]
        added = None
        if self.added is not None and stage.backbone.adds_again:
            added = nn.functional.pad(self.added, (0, 0, self.prefix, 0))
        self.sequence = SequenceContext(ids, mask, context.cross, context.cross_mask, added)

    def _ids(self, layout: Layout, mask: Tensor, frames: Tensor | None) -> Tensor:
        """Positions ``[B, prefix + steps]``, not counting padding.

        A condition of a frame has the position of the step that predicts the first code of this frame, so that their
        distance does not depend on the length of the prefix.
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
        """Start to cache states, so that each place is computed only once."""
        self.state = self.stage.backbone.new_state(self.sequence)

    def all(self, sequence: Tensor) -> Tensor:
        """Hidden states ``[B, N, width]`` of a sequence ``[B, K, N]``."""
        x = self._embed(sequence, 0)
        if self.context.prefix is not None:
            x = torch.cat([self.context.prefix.to(x.dtype), x], dim=1)
        return self.stage.backbone(x, self.sequence, self.state)[:, self.prefix :]

    def last(self, sequence: Tensor) -> Tensor:
        """The last hidden state ``[copies · B, width]`` of a sequence ``[B, K, N]``."""
        if self.state is None or self.state.length == 0:
            return self.all(sequence)[:, -1]
        start = self.state.length - self.prefix
        return self.stage.backbone(self._embed(sequence[:, :, start:], start), self.sequence, self.state)[:, -1]

    def _embed(self, sequence: Tensor, start: int) -> Tensor:
        x = self.stage.embeddings(self.stage.codebooks.places(sequence)).sum(1)
        if self.copies > 1:
            x = x.repeat(self.copies, 1, 1)
        return x if self.added is None else x + self.added[:, start : start + x.shape[1]]
