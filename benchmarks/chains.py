"""What a trained chain does beyond one window: borders, alignment, stories. Prints figures, writes audio.

    python benchmarks/chains.py runs/chorales-hybrid-tiny --data chorales -o chains/

The data must be the corpus: the truth about instruments comes from it.
"""

import argparse
from pathlib import Path

import torch

import partita
from partita.core.reference import Reference
from partita.core.resample import convert
from partita.layers.mel import log_magnitude
from partita.metrics.codec import log_mel_spectrum
from partita.storage.audio_file import write_audio

INSTRUMENTS = ["church organ", "strings", "brass", "harpsichord", "flute", "choir"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a trained run on chorales")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--transition", type=float, default=None)
    parser.add_argument("-o", "--output", type=Path, default=Path("chains"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    system = partita.load(options.run)
    system.source.setup()
    spec = system.output.spec
    prompts = [f"a slow chorale in G major for {name}" for name in INSTRUMENTS[: options.clips]]

    borders = listen_for_borders(system)
    made = system.generate_representations(prompts, duration=options.seconds, seed=1)
    audio = system.decode(made)
    for name, clip in zip(INSTRUMENTS, audio, strict=False):
        write_audio(options.output / f"long-{name.replace(' ', '-')}.wav", clip.numpy(), spec.sample_rate)
    print(f"{options.seconds:g} s in windows: borders at {', '.join(f'{b:.2f}' for b in borders)} s")
    at, elsewhere = roughness(audio, spec.sample_rate, borders)
    typical = elsewhere.median(1, keepdim=True).values
    print("  energy of the second difference, over its median elsewhere in the clip:")
    for where, ratio in (("at borders", at / typical), ("elsewhere", elsewhere / typical)):
        above = (ratio > 2).float().mean()
        print(f"    {where}: median {ratio.median():.2f}, mean {ratio.mean():.2f}, above two {above:.0%}")
    follow(system, made, audio, options.seconds)

    judge = Judge(system, spec)
    print(f"instrument recognized in test clips: {judge.accuracy('test'):.0%}")
    half, pairs = (
        options.seconds / 2,
        [(a, b) for a in INSTRUMENTS for b in INSTRUMENTS if a != b][:: 30 // options.clips],
    )
    words = [
        [(0, f"a slow chorale in G major for {a}"), (half, f"a slow chorale in G major for {b}")] for a, b in pairs
    ]
    told = system.generate(
        [partita.Story(w) for w in words], duration=options.seconds, seed=5, transition=options.transition
    )
    cut = int(half * spec.sample_rate)
    heard = [(judge(clip[:, :cut]), judge(clip[:, cut:])) for clip in told]
    for pair, found, clip in zip(pairs, heard, told, strict=True):
        print(f"  told {' → '.join(pair)}: heard {' → '.join(found)};", end=" ")
        print(f"change at {judge.change(clip, *pair):.1f} s, told at {half:g}")
        write_audio(options.output / f"story-{pair[0]}-{pair[1]}.wav".replace(" ", "-"), clip.numpy(), spec.sample_rate)
    right = sum(a == b for pair, found in zip(pairs, heard, strict=True) for a, b in zip(pair, found, strict=True))
    print(f"story: {right} of {2 * len(pairs)} halves have the instrument told")


def listen_for_borders(system):
    """A list that fills with the times at which windows of the last stage begin anew."""
    name, plan = list(system.plan.stages.items())[-1]
    generate, rate, borders, known = system.stages[name].generate, system.spec(plan.target).frame_rate, [], [0]

    def listen(conditions, frames, *, prompt=None, **rest):
        shown = 0 if prompt is None else prompt.shape[-1]
        if known[0]:
            borders.append(known[0] / rate)
        known[0] += frames - shown
        return generate(conditions, frames, prompt=prompt, **rest)

    object.__setattr__(system.stages[name], "generate", listen)
    return borders


def roughness(audio, sample_rate, borders, seconds=0.02):
    """Energy of the second difference around borders ``[B, borders]``, and in all other stretches ``[B, N]``."""
    size = int(seconds * sample_rate)
    energy = audio.mean(1).diff(n=2).square()
    at = torch.stack([energy[:, int(b * sample_rate) - size // 2 :][:, :size].mean(1) for b in borders], 1)
    stretches = energy[:, : energy.shape[1] // size * size].unflatten(1, (-1, size)).mean(2)
    near = torch.zeros(stretches.shape[1], dtype=torch.bool)
    for border in borders:
        near[int(border / seconds) - 1 : int(border / seconds) + 2] = True
    return at, stretches[:, ~near]


def follow(system, made, audio, seconds):
    """How many of the semantic tokens that were given the result has, from beginning to end."""
    spec = system.output.spec
    for name in made:
        tokenizer = system.tokenizer_of(Reference.parse(name))
        if tokenizer is system.output or not tokenizer.spec.discrete:
            continue
        own = tokenizer.spec
        reconstructed = tokenizer.encode(convert(audio, spec.sample_rate, own.sample_rate, own.channels))
        same = (reconstructed == made[name]).float().mean((0, 1))
        other = (reconstructed.roll(1, 0) == made[name]).float().mean()
        parts = [f"{part.mean():.0%}" for part in same.chunk(4)]
        shifts = [f"{s:+d}: {(reconstructed.roll(s, -1) == made[name]).float().mean():.0%}" for s in (-2, -1, 0, 1, 2)]
        print(f"{name}: the result has {same.mean():.0%} of the tokens given (another clip's: {other:.0%});", end=" ")
        print(f"by quarter {', '.join(parts)}; shifted by frames {', '.join(shifts)}")
        rate, channels = spec.sample_rate, spec.channels
        real = [
            system.source.read("test", i, seed=i, seconds=5.0, sample_rate=rate, channels=channels) for i in range(12)
        ]
        clips = torch.stack([example.audio for example in real])
        coded = system.output.decode(system.output.encode(clips))[..., : clips.shape[-1]]
        before, after = (tokenizer.encode(convert(c, rate, own.sample_rate, own.channels)) for c in (clips, coded))
        print(f"  real clips keep {(before == after).float().mean():.0%} of theirs through {system.output.spec}")


class Judge:
    """Tells instruments apart by the mean and deviation of mel bands: the nearest of the means of training clips."""

    def __init__(self, system, spec, clips=240):
        self.system, self.spec = system, spec
        self.spectrum = log_mel_spectrum(spec.sample_rate)
        features, names = self.clips("train", clips)
        self.center, self.scale = features.mean(0), features.std(0)
        features = (features - self.center) / self.scale
        self.means = torch.stack([features[[n == name for n in names]].mean(0) for name in INSTRUMENTS])

    def clips(self, split, count):
        features, names = [], []
        for i in range(count):
            example = self.system.source.read(
                split, i % self.system.source.size(split), seed=i, seconds=4.0,
                sample_rate=self.spec.sample_rate, channels=1,
            )  # fmt: skip
            features.append(self.features(example.audio))
            names.append(example.fields["instruments"][0])
        return torch.stack(features), names

    def features(self, audio):
        bands = log_magnitude(self.spectrum(audio.float()[None])).flatten(0, 1).mean(0)
        bands = bands[bands.mean(1) > bands.mean(1).max() - 4]  # silence says nothing
        mean = bands.mean(0)
        return torch.cat([mean - mean.mean(), bands.std(0)])

    def distances(self, audio):
        return ((self.features(audio) - self.center) / self.scale - self.means).square().sum(1)

    def __call__(self, audio):
        return INSTRUMENTS[int(self.distances(audio).argmin())]

    def accuracy(self, split, count=60):
        features, names = self.clips(split, count)
        found = torch.cdist((features - self.center) / self.scale, self.means).argmin(1)
        return sum(INSTRUMENTS[f] == n for f, n in zip(found, names, strict=True)) / count

    def change(self, audio, first, second, step=0.25, size=1.0):
        """The time that best splits the clip into one that is nearer to ``first`` and one nearer to ``second``."""
        rate = self.spec.sample_rate
        starts = torch.arange(0, audio.shape[-1] / rate - size, step)
        a, b = INSTRUMENTS.index(first), INSTRUMENTS.index(second)
        lean = [self.distances(audio[:, int(s * rate) : int((s + size) * rate)]) for s in starts.tolist()]
        lean = torch.stack([d[a] - d[b] for d in lean])
        count, before = torch.arange(1, len(lean)), lean.cumsum(0)[:-1]
        after = lean.sum() - before
        rest = len(lean) - count
        return float(starts[1:][int(((after / rest - before / count) * (count * rest).sqrt()).argmax())] + size / 2)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
