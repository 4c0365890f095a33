"""Continuations of training clips, and whether they are the clips' own (MusicLM, arXiv 2301.11325 §4.4).

A system is given the first half of a training clip and the clip's conditions, and continues it as in that study:
greedily where it can, and without guidance, which would lead it away from what it has learned. The codes of the
continuation are compared with those of the clip.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..core.part_key import PartKey
from ..core.progress import listening, progress
from ..core.rates import nearest
from ..core.resample import convert
from ..core.seeds import derive_seed
from ..data.examples import Examples
from ..errors import PartitaError
from ..metrics.memorization import Memorization, entropy, threshold_for, unrelated_costs
from ..recipe.chain import StagePlan
from ..storage.audio_file import flac
from ..storage.files import replacing_file
from ..storage.tensor_file import read_tensors, write_tensors
from ..system.system import System
from ..tokenizers.base import Tokenizer
from .pairing import other_pieces

LEAST_ENTROPY = 1.0
"""Entropy of codes, in bits, below which a clip (such as silence) cannot be told from any other."""

FALSE_POSITIVES = 0.01
"""Fraction of unrelated training clips that may count as approximate matches."""

SHOWN = 4
"""Number of continuations that are shown: those nearest to their training clips."""


@dataclass(frozen=True)
class Continued:
    """Training clips and a system's continuations of them.

    Args:
        generated: Codes ``[N, S]`` of the continuations, without the prefix.
        target: Codes ``[N, S]`` of the clips in the same place.
        pieces: The piece that each clip is from.
    """

    generated: Tensor
    target: Tensor
    pieces: list[str]


def training_clip(path: Path) -> Path:
    """Where the training clip is whose continuation is at a path."""
    return path.with_name(f"{path.stem}-training.flac")


@dataclass(frozen=True)
class Continuations:
    """How a system's continuations are compared with its training clips.

    Args:
        system: The system, with its data.
        name: The stage whose training clips are continued.
        tokenizer: The tokenizer whose codes are compared; only those of its first codebook are.
        source: The representation that holds them; ``None`` if they are read from the generated audio.
    """

    system: System
    name: str
    tokenizer: Tokenizer
    source: str | None

    @classmethod
    def of(cls, system: System) -> Self:
        """Compare the codes of the first stage that generates any: semantic codes if there are any, else acoustic ones.

        Raises:
            PartitaError: Nothing in the system has codes, or its training clips are not known.
        """
        stages = system.plan.stages
        for name, stage in stages.items():
            if system.spec(stage.target).discrete:
                chosen = cls(system, name, system.tokenizers[stage.target.tokenizer], stage.target.source)
                break
        else:
            name, stage = list(stages.items())[-1]
            chosen = cls(system, name, system.tokenizers[stage.target.tokenizer], None)
            if not chosen.tokenizer.spec.discrete:
                raise PartitaError(f"it compares codes, and {stage.target.tokenizer} has none")
        if chosen.plan.part.weights is not None:
            raise PartitaError(
                f"{name} came with weights ({chosen.plan.part.weights}), so the clips it was trained on are not known"
            )
        return chosen

    @property
    def plan(self) -> StagePlan:
        """The plan of the stage whose training clips are continued."""
        return self.system.plan.stages[self.name]

    @property
    def prompt(self) -> float:
        """Seconds of a training clip that are given; as many follow."""
        return self.plan.window / 2

    @torch.inference_mode()
    def tokens(self, folder: Path, count: int, batch_size: int = 8, seed: int = 0) -> Continued:
        """Continue the first clips that the stage saw in training; what the folder holds already is not made again.

        Args:
            folder: Gets each training clip (``00000-training.flac``), its continuation (``00000.flac``) and the codes
                of that (``00000.safetensors``).
            count: Number of training clips to continue.
            batch_size: Number of clips that are generated together.
            seed: Seed of the first continuation.
        """
        spec, own = self.system.output.spec, self.tokenizer.spec
        self.system.source.setup()
        order = derive_seed(self.system.plan.seed, PartKey.of("stages", self.name), "data")
        examples = Examples.for_spec(spec, self.system.source, "train", count, self.plan.window, order)
        prompt = max(1, nearest(self.prompt, spec.sample_rate))
        start = max(1, own.whole_frames(prompt, spec.sample_rate))
        paths = [folder / f"{i:05d}.safetensors" for i in range(count)]
        targets, pieces = [], []
        for first in range(0, count, batch_size):
            batch = range(first, min(first + batch_size, count))
            clips = [examples[i] for i in batch]
            audio = torch.stack([clip.audio for clip in clips])
            targets.append(self._codes(audio)[:, start:])
            pieces += [str(clip.fields.get("id", i)) for i, clip in zip(batch, clips, strict=True)]
            missing = [i for i in batch if not paths[i].is_file()]
            if not missing:
                continue
            chosen = [i - first for i in missing]
            made = self.system.generate_representations(
                self.system.prompts_of([clips[i].fields for i in chosen]),
                duration=self.plan.window,
                seed=[derive_seed(seed, "continued", i) for i in missing],
                continuation=audio[chosen, :, :prompt],
                guidance=1.0,
                sampling={self.name: {"temperature": 0.0}} if self._draws() else None,
                progress=not listening(),
            )
            decoded = self.system.decode(made).cpu()
            codes = self._codes(decoded) if self.source is None else made[self.source].values[:, 0].cpu()
            for i, before, clip, row in zip(missing, audio[chosen], decoded, codes[:, start:], strict=True):
                for path, sound in ((training_clip(paths[i]), before), (paths[i].with_suffix(".flac"), clip)):
                    with replacing_file(path) as new:
                        new.write_bytes(flac(sound.numpy(), spec.sample_rate))
                with replacing_file(paths[i]) as new:
                    write_tensors({"codes": row.contiguous()}, new)
            progress("training clips", first + len(batch), count)
        generated, target = torch.stack([read_tensors(path)["codes"] for path in paths]), torch.cat(targets)
        frames = min(generated.shape[1], target.shape[1])
        return Continued(generated[:, :frames], target[:, :frames], pieces)

    def measure(self, continued: Continued) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """What :class:`~partita.metrics.memorization.Memorization` computes, its chance level, and how it was measured.

        The distance between two codes is that of their centers if the tokenizer has centers, and one otherwise. The
        threshold leaves fewer than 1 % of pairs of clips from different training pieces below it. The chance level
        compares the continuations with clips of other training pieces.

        Clips in which little follows are left out. Continuations with little in them are not: they memorize nothing.

        Raises:
            PartitaError: Clips of fewer than two pieces are left.
        """
        generated, target = continued.generated, continued.target
        cardinality = max(self.tokenizer.spec.cardinalities, default=1)
        centers = getattr(self.tokenizer, "centers", None)
        # the corners of a regular simplex with edges of one
        centers = torch.eye(cardinality) / 2**0.5 if centers is None else centers.detach().cpu()
        kept = entropy(target, cardinality) >= LEAST_ENTROPY
        numbers = kept.nonzero()[:, 0].tolist()
        generated, target, pieces = generated[kept], target[kept], [continued.pieces[i] for i in numbers]
        others = other_pieces(pieces)
        if others is None:
            raise PartitaError(
                f"in {len(target)} of {len(kept)} training clips something follows ({LEAST_ENTROPY:g} bits of codes or "
                "more), and it takes clips of two pieces"
            )
        costs = unrelated_costs(target, target, centers, pieces=pieces)
        threshold = max(threshold_for(costs, FALSE_POSITIVES), 1e-9)
        found, metrics = [], []
        for followed in (target, target[others]):
            metric = Memorization(centers, threshold)
            metric.update(generated, followed, pieces)
            found.append(metric.compute())
            metrics.append(metric)
        rows = metrics[0].rows("sums")
        order = sorted(range(len(numbers)), key=lambda i: (not rows[i, 0], float(rows[i, 2])))
        how = {
            "embedding": f"codes of {self.tokenizer.registered_name}",
            "threshold": threshold,
            "left_out": float(1 - kept.double().mean()),
            "prompt_seconds": self.prompt,
            "nearest": [
                {"clip": numbers[i], "piece": pieces[i], "exact": bool(rows[i, 0]), "cost": float(rows[i, 2])}
                for i in order[:SHOWN]
            ],
        }
        return found[0], found[1], how

    def _codes(self, audio: Tensor) -> Tensor:
        """The first codebook's codes ``[B, S]`` of audio ``[B, C, T]`` at the rate of the system's output."""
        own, rate = self.tokenizer.spec, self.system.output.spec.sample_rate
        converted = convert(audio, rate, own.sample_rate, own.channels).to(self.system.device)
        return self.tokenizer.encode(converted)[:, 0].cpu()

    def _draws(self) -> bool:
        """Whether the stage can take the likeliest code."""
        return "temperature" in {f.name for f in fields(self.system.stages[self.name].sampling)}
