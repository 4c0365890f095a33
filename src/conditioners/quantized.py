"""Joint embeddings as codes, of audio and of texts alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import Condition, ConditionSpec
from ..core.processes import drawing_together, from_first, of_all
from ..core.registry import register
from ..errors import PartitaError
from ..layers.clustering import lloyd, nearest, plus_plus
from ..metrics.codec import CodebookUsage
from ..metrics.retrieval import EmbeddedPairs
from .joint import JointConditioner, complete, recalls


@register("conditioner", "quantized")
class Quantized(JointConditioner):
    """Residual vector quantization of joint embeddings (MusicLM, arXiv 2301.11325, §3.1).

    Each codebook holds k-means clusters of what the codebooks before it leave of the embeddings of training clips.
    Texts are quantized by the same codebooks: so a stage can be trained on the codes of audio and prompted with texts.
    A condition is one code per codebook, without a frame rate.

    The embeddings of the first ``samples`` training clips are collected; then, or at the end of a shorter training, all
    codebooks are fitted to them. Further training changes nothing.

    Args:
        embedding: The conditioner whose embeddings are quantized, which stays frozen.
        num_codebooks: Number of codebooks.
        cardinality: Entries of each codebook.
        samples: Number of training clips, of all processes together, to which the codebooks are fitted.
        iterations: Iterations of Lloyd's algorithm for each codebook.
        inputs: Names of the fields of audio and text that the conditioner reads. If a clip has both, the kind that is
            named first is used. Training needs audio.

    Raises:
        ValueError: A number is out of range.
    """

    inputs: tuple[str, ...] = ("audio", "text")
    training_only = ("clips", "filled", "fitted")
    clips: Tensor
    filled: Tensor
    fitted: Tensor

    def __init__(
        self,
        *,
        embedding: JointConditioner,
        num_codebooks: int = 12,
        cardinality: int = 1024,
        samples: int = 65536,
        iterations: int = 30,
        inputs: tuple[str, ...] = ("audio", "text"),
    ) -> None:
        super().__init__(inputs)
        if not isinstance(embedding, JointConditioner):
            raise ValueError(f"embedding must embed texts and audio in one space, unlike {embedding.registered_name}")
        if min(num_codebooks, iterations) < 1 or cardinality < 2:
            raise ValueError(
                "num_codebooks and iterations must be at least 1 and cardinality at least 2, not "
                f"{num_codebooks}, {iterations} and {cardinality}"
            )
        if samples < cardinality:
            raise ValueError(f"samples must be at least the cardinality, {cardinality}, not {samples}")
        self.automatic_optimization = False
        self.embedding, self.iterations = embedding, iterations
        self.dim, self.sample_rate = embedding.dim, embedding.sample_rate
        self.codebooks = nn.Parameter(torch.randn(num_codebooks, cardinality, self.dim) / self.dim**0.5)
        self.register_buffer("clips", torch.zeros(samples, self.dim))
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("fitted", torch.tensor(False))
        self.usage = CodebookUsage(num_codebooks, cardinality)
        self.pairs = EmbeddedPairs()

    @property
    def spec(self) -> ConditionSpec:
        """One code per codebook and clip."""
        num_codebooks, cardinality, _ = self.codebooks.shape
        return ConditionSpec(num_codebooks=num_codebooks, cardinality=cardinality)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Convert texts to the tokens ``[B, L]`` of the embedding and their mask ``[B, L]``."""
        return self.embedding.tokenize(texts)

    def embed_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The embeddings ``[B, D]`` of tokens and mask ``[B, L]``, before quantization."""
        return self.embedding.eval().embed_tokens(tokens, mask)

    def embed_audio(self, audio: Tensor) -> Tensor:
        """The embeddings ``[B, N, D]`` of audio ``[B, 1, T]``, before quantization."""
        return self.embedding.eval().embed_audio(audio)

    @torch.no_grad()
    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Codes ``[B, K, 1]``, zero where masked."""
        embeddings, known = self.embed_prepared(prepared)
        return Condition(self.encode(embeddings) * known[:, None, None], known[:, None])

    @torch.no_grad()
    def encode(self, embeddings: Tensor) -> Tensor:
        """Embeddings ``[B, D]`` to codes ``[B, K, 1]``: each codebook quantizes what those before it leave."""
        rest, codes = embeddings.float(), []
        for codebook in self.codebooks:
            codes.append(nearest(rest, codebook)[1])
            rest = rest - codebook[codes[-1]]
        return torch.stack(codes, 1)[..., None]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``[B, K, 1]`` to embeddings ``[B, D]`` of unit length, which can be compared as those before."""
        each = zip(self.codebooks, codes[..., 0].unbind(1), strict=True)
        return F.normalize(torch.stack([codebook[code] for codebook, code in each]).sum(0), dim=-1)

    def setup(self, stage: str) -> None:
        """Freeze the embedding.

        Raises:
            PartitaError: The conditioner does not read audio, to which the codebooks are fitted.
        """
        self.embedding.requires_grad_(False)
        if stage == "fit" and not self.reads_audio:
            raise PartitaError(
                f"quantized is fitted to the embeddings of audio, but its inputs are {', '.join(self.inputs)}: add "
                "audio"
            )

    @torch.no_grad()
    def training_step(self, prepared: dict[str, Tensor], batch_idx: int) -> None:
        """Collect the embeddings of the clips of a batch, and fit the codebooks once there are enough."""
        own = self.embed_clips(prepared["audio"], prepared["samples"])
        embeddings = of_all(own)[of_all(prepared["samples"]) > 0]
        if not self.fitted:
            start, stop = int(self.filled), min(len(self.clips), int(self.filled) + len(embeddings))
            self.clips[start:stop] = embeddings[: stop - start]
            self.filled.fill_(stop)
            if stop == len(self.clips):
                self._fit()
        optimizer = self.optimizers()
        optimizer.step()  # type: ignore[union-attr]  # without a gradient: this only counts the steps
        self.log("train/loss", self._error(own), prog_bar=True, batch_size=len(own))

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Fit the codebooks to the clips so far if the training was too short to do so."""
        if not self.fitted and self.filled:
            self._fit()

    def validation_step(self, prepared: dict[str, Tensor], batch_idx: int) -> None:
        """Log how far clips are from what their codes mean, and collect clips and captions after quantization."""
        audio = self.embed_clips(prepared["audio"], prepared["samples"])
        codes = self.encode(audio)
        self.usage.update(codes)
        self.log("val/loss", self._error(audio), prog_bar=True, batch_size=len(audio))
        if "tokens" in prepared:
            text = self.decode(self.encode(self.embed_tokens(prepared["tokens"], prepared["mask"])))
            paired = complete(prepared)
            self.pairs.update(self.decode(codes)[paired], text[paired], prepared["caption"][paired])

    def on_validation_epoch_end(self) -> None:
        """Log the usage of the codebooks, and the recall through the quantizer over all validation clips."""
        logged = {name: value.float().mean() for name, value in self.usage.compute().items()}
        self.usage.reset()
        if self.pairs.update_called and len((pairs := self.pairs.compute())[2]):
            logged |= recalls(*pairs)
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

    def vocabulary(self) -> bytes:
        """The words of the embedding's text tokenizer and their numbers."""
        return self.embedding.vocabulary()

    def save_tokenizer(self, folder: Path) -> None:
        """Write the files of the embedding's text tokenizer."""
        self.embedding.save_tokenizer(folder)

    def load_tokenizer(self, folder: Path) -> None:
        """Read the files of the embedding's text tokenizer."""
        self.embedding.load_tokenizer(folder)

    def _fit(self) -> None:
        """Fit the codebooks, one after the other, to the clips that were collected."""
        rest = self.clips[: int(self.filled)].clone()
        with drawing_together(rest.device), torch.autocast(rest.device.type, enabled=False):
            for codebook in self.codebooks:
                codebook.copy_(lloyd(rest, plus_plus(rest, len(codebook)), self.iterations))
                rest -= codebook[nearest(rest, codebook)[1]]
        self.fitted.fill_(True)
        from_first(self.codebooks.data)

    def _error(self, embeddings: Tensor) -> Tensor:
        """One minus the mean similarity of embeddings ``[B, D]`` to what their codes mean."""
        return 1 - (embeddings * self.decode(self.encode(embeddings))).sum(1).mean()
