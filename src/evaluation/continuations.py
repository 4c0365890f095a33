"""Memorization: continuations of training clips compared with the clips themselves (MusicLM, arXiv 2301.11325 §4.4).

A system is prompted with the beginning of a training clip and the clip's conditions. As in that study, it continues
the clip with greedy decoding where the stage supports it, and without guidance, which would lead it away from what it
has learned. The codes of the continuation are compared with those of the clip.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..core.dependent_clips import group_of
from ..core.progress import listening, progress
from ..core.rates import nearest
from ..core.resample import convert
from ..core.seeds import derive_seed
from ..errors import PartitaError
from ..metrics.memorization import Memorization, entropy, threshold_for, unrelated_costs
from ..recipe.chain import StagePlan
from ..storage.audio_file import flac
from ..storage.files import replacing_file
from ..storage.tensor_file import read_tensors, write_tensors
from ..system.generation import continuation_frames, representation_of
from ..system.system import System
from ..tokenizers.base import Tokenizer
from .pairing import other_pieces
from .training_clips import training_clips

MIN_ENTROPY = 1.0
"""Smallest entropy of codes, in bits, at which a clip is distinguishable from others, unlike silence."""

FALSE_POSITIVES = 0.01
"""Fraction of unrelated training clips that may count as approximate matches."""

NUM_SHOWN = 4
"""Number of continuations on the page: those nearest to their training clips."""


@dataclass(frozen=True)
class ContinuationCodes:
    """Codes of training clips and of their continuations by a system.

    Args:
        generated: Codes ``[N, S]`` of the continuations, without the prompt.
        target: Codes ``[N, S]`` of the training clips at the same positions.
        pieces: Id of the piece that each clip is from.
        groups: Name that each clip shares with those that are not independent of it, such as others of its tune.
    """

    generated: Tensor
    target: Tensor
    pieces: list[str]
    groups: list[str]


def training_clip_path(path: Path) -> Path:
    """Return the path of the training clip whose continuation is at a path."""
    return path.with_name(f"{path.stem}-training.flac")


@dataclass(frozen=True)
class Continuations:
    """The comparison of a system's continuations with its training clips.

    Args:
        system: The system, with its data.
        name: Name of the stage whose training clips are continued.
        tokenizer: Tokenizer of the compared codes. Only codes of its first codebook are compared.
        source: Name of the generated representation that holds these codes. ``None`` encodes the generated audio.
        prompt: Length of the prompts, in seconds. ``None`` takes half a window.
        continued: Length of the continuations, in seconds. ``None`` takes half a window.
    """

    system: System
    name: str
    tokenizer: Tokenizer
    source: str | None
    prompt: float | None = None
    continued: float | None = None

    @classmethod
    def of(cls, system: System) -> Self:
        """Return the comparison in the codes of the first stage that generates codes, such as semantic codes.

        If no stage generates codes, the last stage's audio is encoded by its tokenizer.

        Raises:
            PartitaError: The system has no codes, or its training clips are unknown.
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
                raise PartitaError(f"it compares codes, and the tokenizer {stage.target.tokenizer} has none")
        if chosen.plan.part.weights is not None:
            raise PartitaError(
                f"stage {name} has pretrained weights ({chosen.plan.part.weights}), so its training clips are unknown"
            )
        return chosen

    @property
    def plan(self) -> StagePlan:
        """The plan of the stage whose training clips are continued."""
        return self.system.plan.stages[self.name]

    @property
    def prompt_seconds(self) -> float:
        """Length of the prompts, in seconds."""
        return self.plan.window / 2 if self.prompt is None else self.prompt

    @property
    def continued_seconds(self) -> float:
        """Length of the continuations, in seconds."""
        return self.plan.window / 2 if self.continued is None else self.continued

    @property
    def seconds(self) -> float:
        """Length of a prompt and its continuation, in seconds."""
        return self.prompt_seconds + self.continued_seconds

    def after(self, prompt: float | None, continued: float | None) -> Self:
        """Return the same comparison with other lengths, in seconds; see :class:`Continuations`.

        Raises:
            PartitaError: Prompt and continuation are longer than the clips that the stage is trained on.
        """
        changed = replace(self, prompt=prompt, continued=continued)
        if changed.seconds > self.plan.window + 1e-9:
            raise PartitaError(
                f"prompts of {changed.prompt_seconds:g} s with continuations of "
                f"{changed.continued_seconds:g} s are longer than the training clips of stage "
                f"{self.name}, {self.plan.window:g} s: shorten them"
            )
        return changed

    @torch.inference_mode()
    def generate(self, folder: Path, count: int, batch_size: int = 8, seed: int = 0) -> ContinuationCodes:
        """Continue the first clips of the stage's training; continuations in the folder are not generated again.

        Args:
            folder: Folder that receives each training clip (``00000-training.flac``), its continuation
                (``00000.flac``) and the codes of the continuation (``00000.safetensors``).
            count: Number of training clips to continue.
            batch_size: Number of clips that are generated together.
            seed: Seed that the seeds of all continuations are derived from.
        """
        spec, own = self.system.output.spec, self.tokenizer.spec
        self.system.source.setup()
        examples = training_clips(self.system, self.name, count)
        prompt, stop = (nearest(seconds, spec.sample_rate) for seconds in (self.prompt_seconds, self.seconds))
        start = own.whole_frames(prompt, spec.sample_rate)
        paths = [folder / f"{i:05d}.safetensors" for i in range(count)]
        targets, pieces, groups = [], [], []
        for first in range(0, count, batch_size):
            batch = range(first, min(first + batch_size, count))
            clips = [examples[i] for i in batch]
            audio = torch.stack([clip.audio for clip in clips])
            targets.append(self._codes(audio)[:, start:])
            pieces += [str(clip.fields.get("id", i)) for i, clip in zip(batch, clips, strict=True)]
            groups += [group_of(clip.fields) or str(i) for i, clip in zip(batch, clips, strict=True)]
            missing = [i for i in batch if not paths[i].is_file()]
            if not missing:
                continue
            chosen = [i - first for i in missing]
            made = self.system.generate_representations(
                # as in training, a conditioner that reads audio hears the clip, whatever its caption
                self.system.prompts_of([clips[i].fields | {"audio": clips[i].audio} for i in chosen]),
                duration=self.seconds,
                seed=[derive_seed(seed, "continued", i) for i in missing],
                continuation=self._known(audio[chosen], prompt) if start else None,
                guidance=1.0,
                sampling={self.name: {"temperature": 0.0}} if self._can_decode_greedily() else None,
                progress=not listening(),
            )
            decoded = self.system.decode(made).cpu()
            codes = self._codes(decoded) if self.source is None else made[self.source].values[:, 0].cpu()
            for i, before, clip, row in zip(missing, audio[chosen, :, :stop], decoded, codes[:, start:], strict=True):
                for path, sound in ((training_clip_path(paths[i]), before), (paths[i].with_suffix(".flac"), clip)):
                    with replacing_file(path) as new:
                        new.write_bytes(flac(sound.numpy(), spec.sample_rate))
                with replacing_file(paths[i]) as new:
                    write_tensors({"codes": row.contiguous()}, new)
            progress("training clips", first + len(batch), count)
        generated, target = torch.stack([read_tensors(path)["codes"] for path in paths]), torch.cat(targets)
        # as many after prompts of any length, which end within a frame
        whole = max(1, own.whole_frames(nearest(self.continued_seconds, spec.sample_rate), spec.sample_rate))
        frames = min(generated.shape[1], target.shape[1], whole)
        return ContinuationCodes(generated[:, :frames], target[:, :frames], pieces, groups)

    def measure(self, continued: ContinuationCodes) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Return the results of :class:`~partita.metrics.memorization.Memorization`, their chance level, and details.

        The distance between two codes is that of their centers if the tokenizer has centers, and one otherwise. Fewer
        than 1 % of pairs of clips from different training pieces lie below the threshold. The chance level compares
        the continuations with clips of other training pieces.

        Training clips whose continuation has a low entropy, such as silence, are left out. Generated continuations of
        low entropy count, because they memorize nothing.

        Raises:
            PartitaError: Clips of fewer than two pieces are left.
        """
        generated, target = continued.generated, continued.target
        cardinality = max(self.tokenizer.spec.cardinalities, default=1)
        centers = getattr(self.tokenizer, "centers", None)
        # corners of a regular simplex: the distance between any two codes is one
        centers = torch.eye(cardinality) / 2**0.5 if centers is None else centers.detach().cpu()
        kept = entropy(target, cardinality) >= MIN_ENTROPY
        numbers = kept.nonzero()[:, 0].tolist()
        generated, target = generated[kept], target[kept]
        pieces, groups = ([names[i] for i in numbers] for names in (continued.pieces, continued.groups))
        others = other_pieces(groups)
        if others is None:
            raise PartitaError(
                f"{len(target)} of {len(kept)} training clips continue with an entropy of at least "
                f"{MIN_ENTROPY:g} bits, and they must come from at least two pieces"
            )
        costs = unrelated_costs(target, target, centers, pieces=groups)
        threshold = max(threshold_for(costs, FALSE_POSITIVES), 1e-9)
        found, metrics = [], []
        for followed in (target, target[others]):
            metric = Memorization(centers, threshold)
            metric.update(generated, followed, groups)
            found.append(metric.compute())
            metrics.append(metric)
        rows = metrics[0].rows("sums")
        order = sorted(range(len(numbers)), key=lambda i: (not rows[i, 0], float(rows[i, 2])))
        how = {
            "embedding": f"codes of {self.tokenizer.registered_name}",
            "threshold": threshold,
            "left_out": float(1 - kept.double().mean()),
            "prompt_seconds": self.prompt_seconds,
            "continued_seconds": self.continued_seconds,
            "nearest": [
                {"clip": numbers[i], "piece": pieces[i], "exact": bool(rows[i, 0]), "cost": float(rows[i, 2])}
                for i in order[:NUM_SHOWN]
            ],
        }
        return found[0], found[1], how

    def _known(self, clips: Tensor, samples: int) -> dict[str, Tensor]:
        """Return codes and latents at the start of clips ``[B, C, T]``, which were encoded whole, as in training."""
        rate, known = self.system.output.spec.sample_rate, {}
        for target in (target for stage in self.system.plan.stages.values() for target in stage.targets):
            spec = self.system.tokenizer_of(target).spec
            if spec.frame_rate is not None:
                whole = representation_of(self.system, target, clips.to(self.system.device))
                known[target.source] = whole[..., : continuation_frames(samples, rate, spec)]
        return known

    def _codes(self, audio: Tensor) -> Tensor:
        """Return codes ``[B, S]`` of the first codebook for audio ``[B, C, T]`` at the system's sample rate."""
        own, rate = self.tokenizer.spec, self.system.output.spec.sample_rate
        converted = convert(audio, rate, own.sample_rate, own.channels).to(self.system.device)
        return self.tokenizer.encode(converted)[:, 0].cpu()

    def _can_decode_greedily(self) -> bool:
        """Whether the stage samples with a temperature, and can therefore decode greedily."""
        return "temperature" in {f.name for f in fields(self.system.stages[self.name].sampling)}
