"""Self-contained HTML pages: rendering templates, and embedding audio and images."""

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
    """The text of a template of this package, such as ``listen.html``."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template of this package, such as ``report.html``, to a file, completely or not at all."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(Path(__file__).parent)
    )
    with replacing_file(path) as new:
        new.write_text(environment.get_template(template).render(values), encoding="utf-8")


def clip_media(audio: Tensor, sample_rate: int, caption: str) -> dict[str, str]:
    """A caption, a playable data URI and a spectrogram of audio ``[C, T]``, ``sample_rate`` in Hz."""
    return {
        "caption": caption,
        "audio": data_uri(flac(audio.float().clamp(-1, 1).numpy(), sample_rate), "audio/flac"),
        "image": data_uri(png(spectrogram_figure(audio, sample_rate)), "image/png"),
    }


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
