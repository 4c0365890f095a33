"""How long instruments take to be heard after the onset of a note: the table in ``partita.data.arrangement``.

    python benchmarks/attacks.py

Every third key of an instrument's range is held for a second at 44.1 kHz. Its level is the RMS of windows of 20 ms,
whose time is that of their center; of keys below 100 Hz, whose periods are longer, of windows of two periods. The
sustained level is the median of the second half of that second. What fades, such as a piano, is then past its peak,
and counts as heard at once. The figures are medians over the keys, in seconds, and the slowest key.
"""

from __future__ import annotations

import numpy as np

from partita.data.arrangement import INSTRUMENTS, Instrument
from partita.data.soundfont import SoundFont
from partita.data.synthesizer import Note, Synthesizer

RATE = 44100
HOP = 44


def rise_times(synthesizer: Synthesizer, instrument: Instrument, key: int) -> tuple[float, float]:
    """Seconds until a key is first heard at 50 % and at 90 % of the amplitude that it sustains."""
    window = max(0.02, 2 / (440 * 2 ** ((key - 69) / 12)))
    # Silence of half a window first, so that the first window is centered on the onset.
    lead = window / 2
    sound = synthesizer.render([Note(lead, 1.1, key, 100)], instrument.program, round((1.1 + lead) * RATE))[0]
    power = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=np.float64))])
    starts = np.arange(0, RATE, HOP)
    level = np.sqrt(np.maximum(power[starts + round(window * RATE)] - power[starts], 0))
    sustained = np.median(level[len(level) // 2 :])
    return tuple(float(starts[(level >= share * sustained).argmax()] / RATE) for share in (0.5, 0.9))  # type: ignore[return-value]


def main() -> None:
    """Print the table."""
    synthesizer = Synthesizer(SoundFont(), RATE)
    print(f"{'instrument':<14} {'50 %':>6} {'90 %':>6} {'slowest':>8}   s")
    for name, instrument in INSTRUMENTS.items():
        keys = range(instrument.lowest, instrument.highest + 1, 3)
        times = np.array([rise_times(synthesizer, instrument, key) for key in keys])
        half, nearly = np.median(times, axis=0)
        print(f"{name:<14} {half:6.3f} {nearly:6.3f} {times[:, 1].max():8.3f}")


if __name__ == "__main__":
    main()
