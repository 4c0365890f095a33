"""Experiment trackers by name, which log the curves, clips and spectrograms of a training."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from torch import Tensor

from ..core.part_key import PartKey
from ..errors import PartitaError
from ..pages.plots import png, spectrogram_figure
from ..recipe.logger_options import chosen_loggers
from ..storage.audio_file import flac

PROJECT = "partita"


def make_loggers(value: Any, run: Path, key: PartKey, hyperparameters: Mapping[str, Any]) -> list[Logger]:
    """Return the loggers of a part's training. They continue the logs of an interrupted training.

    The CSV logger is always included, because reports read their curves from it, unless ``value`` is ``False``.

    Args:
        value: ``trainer.logger`` of the recipe: a name, a list of names, a mapping from names to options, ``False`` for
            no logger, or ``None`` for CSV and TensorBoard.
        run: The run folder.
        key: Key of the part in training.
        hyperparameters: Hyperparameters that trackers show, by dotted key.

    Raises:
        PartitaError: A tracker cannot start, for example because the user is not logged in.
    """
    chosen, logs, loggers = chosen_loggers(value), run / "logs" / key, list[Logger]()
    title = f"{run.resolve().name}/{key}"
    identity = hashlib.sha256(f"{run.resolve()}/{key}".encode()).hexdigest()[:16]
    for name, options in chosen.items():
        try:
            if name == "csv":
                loggers.append(CSVLogger(logs, name="csv", flush_logs_every_n_steps=20))
                continue
            if name == "tensorboard":
                loggers.append(TensorBoardLogger(logs, name="", version="tensorboard"))
                continue
            logs.mkdir(parents=True, exist_ok=True)
            logger = _TRACKERS[name](options, logs, title, run.resolve().name, identity)
            logger.log_hyperparams(dict(hyperparameters))  # also starts the tracker, so that problems show now
        except Exception as error:  # each tracker raises its own errors
            raise PartitaError(
                f"trainer.logger: {name} cannot start: {str(error).strip() or type(error).__name__}"
            ) from None
        loggers.append(logger)
    return loggers


def log_clip(logger: Logger, tag: str, clip: Tensor, sample_rate: int, step: int) -> None:
    """Log a clip ``[C, T]`` and its spectrogram, if the tracker can show them.

    Args:
        logger: Any logger of Lightning.
        tag: Name of the clip.
        clip: Audio; clipped to [-1, 1].
        sample_rate: Sample rate in Hz.
        step: Training step.
    """
    clip = clip.float().cpu().clamp(-1, 1)
    if hasattr(logger, "log_audio") and hasattr(logger, "log_image"):
        logger.log_audio(f"{tag}/audio", [clip.T.numpy()], step=step, sample_rate=[sample_rate])
        logger.log_image(f"{tag}/spectrogram", [spectrogram_figure(clip, sample_rate)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_audio(tag, clip.mean(0), step, sample_rate)
        logger.experiment.add_figure(tag, spectrogram_figure(clip, sample_rate), step)
    elif isinstance(logger, MLFlowLogger):
        with tempfile.TemporaryDirectory() as folder:
            for kind, content in (
                ("flac", flac(clip.numpy(), sample_rate)),
                ("png", png(spectrogram_figure(clip, sample_rate))),
            ):
                path = Path(folder) / f"{tag.replace('/', '-')}-{step}.{kind}"
                path.write_bytes(content)
                logger.experiment.log_artifact(logger.run_id, str(path), "clips")


def supports_clips(logger: Logger) -> bool:
    """Return whether :func:`log_clip` can log to a logger."""
    shows = hasattr(logger, "log_audio") and hasattr(logger, "log_image")
    return shows or isinstance(logger, TensorBoardLogger | MLFlowLogger)


def close_loggers(loggers: Sequence[Logger]) -> None:
    """End the open runs of trackers in this process, so that the next part starts its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger | TrackioLogger) and hasattr(logger.experiment, "finish"):
            logger.experiment.finish()


class TrackioLogger(Logger):
    """Logs to trackio: locally, to a server, or with ``space_id`` to a Space on the Hugging Face Hub.

    Args:
        project: Name of the project.
        name: Name of the run. A run with the same name is continued.
        group: Name of a group of runs.
        space_id: Id of the Space.
        server_url: Address of a trackio server.
    """

    def __init__(
        self,
        project: str,
        name: str,
        group: str | None = None,
        space_id: str | None = None,
        server_url: str | None = None,
    ) -> None:
        super().__init__()
        self._arguments = {"project": project, "name": name, "group": group}
        self._arguments |= {"space_id": space_id, "server_url": server_url}
        self._run: Any = None

    @property
    def name(self) -> str | None:
        """Name of the project."""
        return self._arguments["project"]

    @property
    def version(self) -> str | None:
        """Name of the run."""
        return self._arguments["name"]

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The trackio run, started on first access."""
        if self._run is None:
            import trackio

            self._run = trackio.init(**self._arguments, resume="allow", embed=False)
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers at a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log hyperparameters."""
        self.experiment.config.update(dict(params))

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, *, sample_rate: list[int]) -> None:
        """Log clips ``[T, C]`` in [-1, 1]."""
        import trackio

        for audio, rate in zip(audios, sample_rate, strict=True):
            samples = (audio * 32767).round().astype("int16")
            self.experiment.log({key: trackio.Audio(samples, sample_rate=rate, format="wav")}, step=step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log matplotlib figures."""
        import trackio
        from PIL import Image

        for figure in images:
            self.experiment.log({key: trackio.Image(Image.open(io.BytesIO(png(figure))))}, step=step)


def _wandb(options: dict[str, Any], logs: Path, title: str, run: str, identity: str) -> Logger:
    own: dict[str, Any] = {"project": PROJECT, "name": title, "group": run} | options
    return WandbLogger(save_dir=logs, id=identity, **own)


def _mlflow(options: dict[str, Any], logs: Path, title: str, run: str, identity: str) -> Logger:
    """Return an MLflow logger. MLflow assigns the run id, which is stored beside the logs."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{logs.parents[1] / 'mlflow.db'}"
    own: dict[str, Any] = {"experiment_name": PROJECT, "run_name": title, "tracking_uri": address}
    if address.startswith("sqlite:"):
        own["artifact_location"] = (logs.parents[1] / "mlflow").resolve().as_uri()
    kept = logs / "mlflow-run"
    run_id = kept.read_text(encoding="utf-8").strip() if kept.is_file() else None
    logger = MLFlowLogger(**(own | options), run_id=run_id)
    if not kept.is_file() and logger.run_id is not None:
        kept.write_text(str(logger.run_id), encoding="utf-8")
    return logger


def _trackio(options: dict[str, Any], logs: Path, title: str, run: str, identity: str) -> Logger:
    return TrackioLogger(**({"project": PROJECT, "name": title, "group": run} | options))


_TRACKERS = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
