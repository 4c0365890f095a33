"""Embeddings as codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.processes import drawing_together, from_first, of_all
from ..core.registry import register
from ..errors import PartitaError
from ..layers.clustering import lloyd, nearest, plus_plus
from ..limits import MOST_LAYERS, TooMuch, beyond
from ..metrics.codec import CodebookUsage
from ..metrics.retrieval import EmbeddedPairs
from .base import Conditioner
from .embedding import EmbeddingConditioner, mean_embedding


@register("conditioner", "quantized")
class Quantized(Conditioner):
    """Residual vector quantization of the embeddings of another conditioner (MusicLM, arXiv 2301.11325).

    Each codebook holds k-means clusters of what the codebooks before it leave of the embeddings of training clips.
    Whatever the embedding reads passes through the same codebooks: so a stage can be trained on the codes of audio and
    prompted with texts (MuLan, §3.1), or trained on the codes of one recording of a melody and prompted with another
    one (the melody embedding, appendix C). A condition is one code per codebook for each embedding, aligned in time if
    the embeddings are.

    The first ``samples`` embeddings of training clips are collected; then, or at the end of a shorter training, all
    codebooks are fitted to them. Further training changes nothing.

    Args:
        embedding: The conditioner whose embeddings are quantized, which stays frozen. Its ``inputs`` are those of the
            codes.
        num_codebooks: Number of codebooks.
        cardinality: Entries of each codebook.
        samples: Number of embeddings, of all processes together, to which the codebooks are fitted.
        iterations: Iterations of Lloyd's algorithm for each codebook.

    Raises:
        ValueError: A number is out of range, or the conditioner does not embed recordings.
    """

    reads_one = True  # as its embedding
    training_only = ("collected", "filled", "fitted")
    collected: Tensor
    filled: Tensor
    fitted: Tensor

    def __init__(
        self,
        *,
        embedding: EmbeddingConditioner,
        num_codebooks: int = 12,
        cardinality: int = 1024,
        samples: int = 65536,
        iterations: int = 30,
    ) -> None:
        if not isinstance(embedding, EmbeddingConditioner):
            raise ValueError(f"embedding must embed recordings, unlike {embedding.registered_name}")
        super().__init__(embedding.inputs)
        if min(num_codebooks, iterations) < 1 or cardinality < 2:
            raise ValueError(
                "num_codebooks and iterations must be at least 1 and cardinality at least 2, not "
                f"{num_codebooks}, {iterations} and {cardinality}"
            )
        if beyond(num_codebooks, MOST_LAYERS):
            raise TooMuch(f"{num_codebooks:,} codebooks exceed the limit of {MOST_LAYERS:,}: refused")
        if samples < cardinality:
            raise ValueError(f"samples must be at least the cardinality, {cardinality}, not {samples}")
        self.automatic_optimization = False
        self.embedding, self.iterations = embedding, iterations
        self.sample_rate, self.longest_audio = embedding.sample_rate, embedding.longest_audio
        self.codebooks = nn.Parameter(torch.randn(num_codebooks, cardinality, embedding.dim) / embedding.dim**0.5)
        self.register_buffer("collected", torch.zeros(samples, embedding.dim))
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("fitted", torch.tensor(False))
        self.usage = CodebookUsage(num_codebooks, cardinality)
        self.pairs = EmbeddedPairs()

    @property
    def spec(self) -> ConditionSpec:
        """One code per codebook for each embedding."""
        num_codebooks, cardinality, _ = self.codebooks.shape
        rate = self.embedding.spec.frame_rate
        return ConditionSpec(frame_rate=rate, num_codebooks=num_codebooks, cardinality=cardinality)

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Convert clips to the tensors that the embedding reads."""
        return self.embedding.prepare(clips)

    @torch.no_grad()
    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Codes ``[B, K, L]`` of the ``L`` embeddings of each clip, zero where masked."""
        embedded = self._embedded(prepared)
        return Condition(self.encode(embedded.values) * embedded.mask[:, None], embedded.mask)

    @torch.no_grad()
    def encode(self, embeddings: Tensor) -> Tensor:
        """Embeddings ``[B, L, D]`` to codes ``[B, K, L]``: each codebook quantizes what those before it leave."""
        rest, codes = embeddings.float(), []
        for codebook in self.codebooks:
            codes.append(nearest(rest, codebook)[1])
            rest = rest - codebook[codes[-1]]
        return torch.stack(codes, 1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``[B, K, L]`` to embeddings ``[B, L, D]`` of unit length, which can be compared as those before."""
        each = zip(self.codebooks, codes.unbind(1), strict=True)
        return F.normalize(torch.stack([codebook[code] for codebook, code in each]).sum(0), dim=-1)

    def setup(self, stage: str) -> None:
        """Freeze the embedding.

        Raises:
            PartitaError: It does not read audio, to which the codebooks are fitted.
        """
        self.embedding.requires_grad_(False)
        if stage == "fit" and not self.reads_audio:
            raise PartitaError(
                f"quantized is fitted to the embeddings of audio, but the inputs of its embedding are "
                f"{', '.join(self.inputs)}: set `inputs: [audio, {', '.join(self.inputs)}]` of the embedding"
            )

    @torch.no_grad()
    def training_step(self, prepared: dict[str, Tensor], batch_idx: int) -> None:
        """Collect the embeddings of the clips of a batch, and fit the codebooks once there are enough."""
        own = self._embedded(prepared)
        most = of_all(torch.tensor([own.mask.shape[1]], device=own.mask.device)).max()
        padded = own.lasting(int(most))  # processes exchange tensors of one shape
        embeddings = of_all(padded.values)[of_all(padded.mask)]
        if not self.fitted:
            start, stop = int(self.filled), min(len(self.collected), int(self.filled) + len(embeddings))
            self.collected[start:stop] = embeddings[: stop - start]
            self.filled.fill_(stop)
            if stop == len(self.collected):
                self._fit()
        optimizer = self.optimizers()
        optimizer.step()  # type: ignore[union-attr]  # without a gradient: this only counts the steps
        self._log_error("train", own)

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Fit the codebooks to the embeddings so far if the training was too short to do so."""
        if not self.fitted and self.filled:
            self._fit()

    def validation_step(self, prepared: dict[str, Tensor], batch_idx: int) -> None:
        """Log how far embeddings are from what their codes mean, and collect both views of clips after quantization."""
        own = self._embedded(prepared)
        if own.mask.any():
            self.usage.update(self.encode(own.values[own.mask][:, None]))
        self._log_error("val", own)
        if (views := self.embedding.views(prepared)) is not None:
            first, second = (
                mean_embedding(Condition(self.decode(self.encode(view.values)), view.mask)) for view in views[:2]
            )
            self.pairs.update(first, second, views.keys)

    def on_validation_epoch_end(self) -> None:
        """Log the usage of the codebooks, and the recall through the quantizer over all validation clips."""
        logged = {name: value.float().mean() for name, value in self.usage.compute().items()}
        self.usage.reset()
        if self.pairs.update_called and len((pairs := self.pairs.collected())[2]):
            logged |= self.embedding.recalls(*pairs)
        self.pairs.reset()
        self.log_dict({f"val/{name}": value for name, value in logged.items()}, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """An optimizer that counts the steps; the codebooks are fitted without gradients."""
        return torch.optim.SGD([self.codebooks], lr=1.0)

    def doubt(self) -> str | None:
        """A warning if training has too few clips for the codebooks."""
        clips, entries = self.fit_options.steps * self.fit_options.examples, self.codebooks.shape[1]
        if clips >= 2 * entries:
            return None
        return f"codebooks of {entries} entries are fitted to {clips} clips of each process: train longer"

    def _embedded(self, prepared: dict[str, Tensor]) -> Condition:
        return self.embedding.eval()(prepared)

    def _fit(self) -> None:
        """Fit the codebooks, one after the other, to the embeddings that were collected."""
        rest = self.collected[: int(self.filled)].clone()
        with drawing_together(rest.device), torch.autocast(rest.device.type, enabled=False):
            for codebook in self.codebooks:
                codebook.copy_(lloyd(rest, plus_plus(rest, len(codebook)), self.iterations))
                rest -= codebook[nearest(rest, codebook)[1]]
        self.fitted.fill_(True)
        from_first(self.codebooks.data)

    def _log_error(self, split: str, embedded: Condition) -> None:
        """Log one minus the mean similarity of embeddings, if there are any, to what their codes mean."""
        embeddings = embedded.values[embedded.mask][:, None]
        if number := len(embeddings):
            similarity = (embeddings * self.decode(self.encode(embeddings))).sum() / number
            self.log(f"{split}/loss", 1 - similarity, prog_bar=True, batch_size=number)
