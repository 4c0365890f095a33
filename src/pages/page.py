"""Self-contained HTML pages: templates, and embedded audio and images."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from ..storage.audio_file import flac
from ..storage.files import replacing_file
from .plots import png, spectrogram_figure

if TYPE_CHECKING:
    from torch import Tensor


def template_text(name: str) -> str:
    """Return the text of a template of this package, such as ``listen.html``."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template of this package, such as ``report.html``, to a file, which is replaced as a whole."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(Path(__file__).parent)
    )
    with replacing_file(path) as new:
        new.write_text(environment.get_template(template).render(values), encoding="utf-8")


def clip_media(audio: Tensor, sample_rate: int, caption: str) -> dict[str, str]:
    """Return the caption, audio and spectrogram of a clip ``[C, T]`` as ``player.html`` needs them.

    Args:
        audio: Audio ``[C, T]`` in [-1, 1].
        sample_rate: Sample rate in Hz.
        caption: Text above the player.
    """
    return {
        "caption": caption,
        "audio": data_uri(flac(audio.float().clamp(-1, 1).numpy(), sample_rate), "audio/flac"),
        "image": data_uri(png(spectrogram_figure(audio, sample_rate)), "image/png"),
    }


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes as a data URI of the media type ``kind``, such as ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
