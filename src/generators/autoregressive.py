"""A stage that generates codes step by step with a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from ..core.registry import register
from ..errors import PartitaError
from ..layers.conditioning import Conditioning, Context, Interpolation
from ..layers.guidance import Term, checked_terms, classifier_free, combine, conditions_of
from ..layers.kv_cache import KeyValueCache
from ..layers.patterns import Layout, Pattern, PatternName
from ..layers.positions import PositionKind, Positions, position_ids
from ..layers.sampling import GumbelNoise, Sampling, evaluating
from ..layers.transformer import Activation, Norm, Transformer, scaled_normal_
from .base import Generator

DEFAULT_SAMPLING = Sampling()


@register("generator", "autoregressive")
class Autoregressive(Generator):
    """A transformer that predicts codes step by step, codebooks laid out by a pattern (MusicGen, MusicLM).

    At every step the embeddings of all codebooks are summed, and one linear head per codebook predicts the next
    step. Conditions are attended to (``cross``), come before the sequence (``prepend``), or are added to the step
    that predicts their frame (``add``). The defaults are MusicGen-small's (arXiv 2306.05284, audiocraft ``lm.py``), but
    for ``tail`` and the probability of losing all conditions, which is 0.3 there.

    Args:
        target: The representation it generates; must be discrete.
        given: By name, what it is given and how each enters.
        width: Of the transformer.
        depth: Number of transformer blocks.
        num_heads: Attention heads; twice their number must divide the width.
        feed_forward: Width between the feed-forward projections, as a multiple of the width.
        activation: Between them: ``gelu``, or ``swiglu``, which has a gate and so half as many weights again.
        norm: ``layer``, or ``rms`` for its root-mean-square form.
        positions: ``sinusoidal``, added to the input, or ``rotary``, in every self-attention.
        qk_norm: Whether to normalize queries and keys per head.
        residual_dropout: Dropout of the input and of every block's outputs, in training.
        attention_dropout: Dropout of the attention weights, in training.
        pattern: Order of the codebooks: ``delay``, ``parallel``, ``flatten``, ``partial_flatten``, ``coarse_first`` or
            ``musiclm``.
        delays: Frames by which each codebook is late; none for the pattern's own.
        tail: Whether codes that only their delay puts past the end of a clip count in the loss. MusicGen's do not
            (audiocraft keeps the valid steps only), and so it never learns how the late codebooks of a clip end.
        interpolation: How aligned conditions that are added come to the target's frame rate: ``linear`` or ``nearest``.
        sampling: How codes are drawn where a caller does not say.
        checkpointing: Whether to recompute every block in the backward pass, which saves memory.
        dropout: Probability that a sample loses all its conditions in training (what guidance needs).
        condition_dropout: By name, probability that a sample loses that one condition.

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
        width: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        feed_forward: float = 4.0,
        activation: Activation = "gelu",
        norm: Norm = "layer",
        positions: PositionKind = "sinusoidal",
        qk_norm: bool = False,
        residual_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        pattern: PatternName = "delay",
        delays: tuple[int, ...] | None = None,
        tail: bool = True,
        interpolation: Interpolation = "linear",
        sampling: Sampling = DEFAULT_SAMPLING,
        checkpointing: bool = False,
        dropout: float = 0.1,
        condition_dropout: dict[str, float] | None = None,
    ) -> None:
        super().__init__(target, given, dropout=dropout, condition_dropout=condition_dropout)
        if target.num_codebooks is None or target.cardinality is None:
            raise ValueError(f"an autoregressive stage generates codes, and its target has none ({target})")
        self.num_codebooks = target.num_codebooks
        self.cardinality = target.cardinality
        self.special = target.cardinality
        self.pattern = Pattern.named(pattern, target.num_codebooks, None if delays is None else tuple(delays))
        self.tail = tail
        self.sampling = sampling

        self.conditioning = Conditioning(self.given, width, target.frame_rate, interpolation)
        self.embeddings = nn.Embedding(self.num_codebooks * (self.cardinality + 1), width)
        self.transformer = Transformer(
            width,
            depth,
            num_heads,
            feed_forward=feed_forward,
            activation=activation,
            norm=norm,
            positions=positions,
            qk_norm=qk_norm,
            dropout=residual_dropout,
            attention_dropout=attention_dropout,
            cross=any(g.fusion == "cross" for g in self.given.values()),
            checkpointing=checkpointing,
        )
        self.output_heads = nn.Linear(width, self.num_codebooks * self.cardinality, bias=False)
        scaled_normal_(self.embeddings.weight, width)
        scaled_normal_(self.output_heads.weight, width)

    def logits(
        self, codes: Tensor, conditions: dict[str, Condition], mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits ``[B, K, T, cardinality]`` of every code given those before it, and which count, ``[B, K, T]``.

        Args:
            codes: ``[B, K, T]``.
            conditions: Of every given name.
            mask: ``[B, T]`` bool, false on padding; none where nothing pads.
        """
        layout = self.pattern.layout(codes.shape[2], codes.device)
        context = self.conditioning(conditions, codes.shape[2])
        sequence = layout.build(codes, self.special, mask)
        hidden = layout.predicted(_Steps(self, layout, context).all(sequence[:, :, :-1]))
        weight = self.output_heads.weight.view(self.num_codebooks, self.cardinality, -1)
        logits = torch.einsum("bktd,kcd->bktc", hidden, weight)
        counts = torch.ones_like(layout.timely) if self.tail else layout.timely
        present = codes.new_ones(codes.shape[0], codes.shape[2], dtype=torch.bool) if mask is None else mask
        return logits, present[:, None] & counts

    def loss(self, target: Tensor, mask: Tensor, conditions: dict[str, Condition]) -> dict[str, Tensor]:
        """Cross-entropy in nats: ``ce_k`` of each codebook over the codes that count, and their mean, ``loss``."""
        logits, valid = self.logits(target, conditions, mask)
        entropy = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view_as(target) * valid
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
    ) -> Tensor:
        """Codes ``[B, K, frames]``, one sample per seed; the same seed gives the same sample in any batch.

        Args:
            conditions: Per given name the pair (condition, null), of batch ``len(seeds)``.
            frames: Length including the prompt.
            seeds: One per sample.
            prefix: Codes ``[B, K, P]`` with ``P < frames`` that the result starts with.
            guidance: Terms; classifier-free guidance at the scale of ``sampling`` where none are given.
            progress: Called with (steps done, steps in all).
            sampling: How codes are drawn; the stage's own where none is given.
            use_cache: Whether to keep keys and values between steps. Without them every step computes all of the
                sequence again: the same result, slowly.

        Raises:
            ValueError: Batches, names or lengths do not fit together.
        """
        sampling = sampling or self.sampling
        terms = checked_terms(classifier_free(sampling.guidance) if guidance is None else guidance, list(self.given))
        self.check_request(conditions, frames, len(seeds), prefix)
        layout = self.pattern.layout(frames, self.embeddings.weight.device)
        sequence, known = self._start(layout, len(seeds), frames, prefix)
        first = int((layout.valid & ~known).any(0).long().argmax())
        noise = GumbelNoise(seeds, (self.num_codebooks, self.cardinality), sequence.device)
        with evaluating(self):
            context = self.conditioning(conditions_of(terms, conditions), frames)
            steps = _Steps(self, layout, context, len(terms))
            if use_cache:
                steps.keep(len(terms) * len(seeds))
            finite = torch.ones((), dtype=torch.bool, device=sequence.device)
            for step in range(first, layout.length):
                hidden = steps.last(sequence[:, :, :step])
                logits = self.output_heads(hidden).float().view(-1, self.num_codebooks, self.cardinality)
                finite &= logits.isfinite().all()
                drawn = sampling.draw(combine(logits, terms), noise.at(step) if sampling.temperature else None)
                free = layout.valid[:, step] & ~known[:, step]
                sequence[:, :, step] = torch.where(free, drawn, sequence[:, :, step])
                if progress is not None:
                    progress(step + 1 - first, layout.length - first)
        if not finite:  # asked once: each time would wait for the device
            raise FloatingPointError("logits that are not finite numbers")
        return layout.revert(sequence)

    def load_weights(self, source: str | Path) -> None:
        """Load a folder :meth:`save` wrote, or a MusicGen checkpoint in the format of transformers.

        Args:
            source: A folder, or a hub id such as ``facebook/musicgen-small``.

        Raises:
            PartitaError: There are no such weights, or they are not of a stage with these arguments.
        """
        from .musicgen import read_musicgen

        attended = [name for name, g in self.given.items() if g.fusion == "cross"]
        state = read_musicgen(source, attended[0] if attended else "")
        if state is None:
            return super().load_weights(source)
        if self.arguments["positions"] != "sinusoidal" or self.arguments["activation"] != "gelu":
            raise PartitaError(f"{source}: MusicGen has sinusoidal positions and GELU; set positions and activation so")
        return self.load_exported_state(state, source)

    def _start(self, layout: Layout, batch: int, frames: int, prefix: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sequence ``[B, K, S]``, special ids but for the prompt, and where that is, ``[K, S]``."""
        given = 0 if prefix is None else prefix.shape[2]
        known = layout.valid & (layout.frames < given)
        shape = (batch, self.num_codebooks, frames - given)
        rest = torch.zeros(shape, dtype=torch.long, device=known.device)
        codes = rest if prefix is None else torch.cat([prefix.to(known.device), rest], dim=2)
        return torch.where(known, layout.build(codes, self.special), self.special), known


class _Steps:
    """The hidden states of a sequence of steps: all at once, or the last one, with or without a cache.

    Whatever does not depend on the codes is worked out once: positions, and what is added to each step.
    """

    def __init__(self, stage: Autoregressive, layout: Layout, context: Context, copies: int = 1) -> None:
        self.stage = stage
        self.context = context
        self.copies = copies
        self.cache: KeyValueCache | None = None
        self.count = layout.length - 1
        self.offsets = torch.arange(stage.num_codebooks, device=layout.steps.device)[:, None] * (stage.cardinality + 1)
        self.prefix = 0 if context.prefix is None else context.prefix.shape[1]
        # The place of a step adds what belongs to the frame it predicts, which is in the step after it.
        self.added = None if context.added is None else context.added[:, layout.newest[1:]]
        self.mask: Tensor | None = None
        if context.prefix_mask is not None:
            steps = context.prefix_mask.new_ones(len(context.prefix_mask), self.count)
            self.mask = torch.cat([context.prefix_mask, steps], dim=1)
            ids = self._ids(layout, self.mask, context.prefix_frames)
        else:
            ids = torch.arange(self.count, device=layout.steps.device)[None]
        self.positions: Positions = stage.transformer.positions(ids)

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

    def keep(self, batch: int) -> None:
        """Compute each place once from now on."""
        self.cache = self.stage.transformer.new_cache(
            self.prefix + self.count, mask=self.mask, cross=self.context.cross, cross_mask=self.context.cross_mask
        )

    def all(self, sequence: Tensor) -> Tensor:
        """``[B, K, N]`` to ``[B, N, width]``."""
        n = sequence.shape[2]
        x = self._embed(sequence, 0)
        if self.context.prefix is not None:
            x = torch.cat([self.context.prefix.to(x.dtype), x], dim=1)
        places = self.prefix + n
        hidden = self.stage.transformer(
            x,
            self.positions.slice(0, places),
            mask=None if self.mask is None else self.mask[:, :places],
            cross=self.context.cross,
            cross_mask=self.context.cross_mask,
            cache=self.cache,
        )
        return hidden[:, self.prefix :]

    def last(self, sequence: Tensor) -> Tensor:
        """``[B, K, N]`` to the last of the hidden states, ``[copies · B, width]``."""
        if self.cache is None or self.cache.length == 0:
            return self.all(sequence)[:, -1]
        start = self.cache.length - self.prefix
        x = self._embed(sequence[:, :, start:], start)
        places = self.positions.slice(self.cache.length, self.cache.length + x.shape[1])
        return self.stage.transformer(x, places, cache=self.cache)[:, -1]

    def _embed(self, sequence: Tensor, start: int) -> Tensor:
        x = self.stage.embeddings(sequence + self.offsets).sum(1)
        if self.copies > 1:
            x = x.repeat(self.copies, 1, 1)
        return x if self.added is None else x + self.added[:, start : start + x.shape[1]]
