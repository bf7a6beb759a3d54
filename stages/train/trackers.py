"""Experiment trackers: transformers' own callbacks for TensorBoard, MLflow, SwanLab and W&B, beside DVCLive.

Each tracker is configured by its own environment variables, such as MLFLOW_TRACKING_URI; here are only defaults, which
continue the same run after an interruption. A tracker that fails never ends a training run that has started.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformers import TrainerCallback

from models.errors import UserError

log = logging.getLogger("tuneline.train")
TENSORBOARD_LOGS = Path("reports/tensorboard")
# File in the checkpoint folder with the run id that MLflow chose, to continue that run after an interruption. The
# folder is removed when the training is finished.
MLFLOW_RUN = "mlflow_run_id"
# Trackers send the figures of the training; usage statistics, source code and crash reports only if the user says so.
PRIVACY = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
}


def build_trackers(names: Sequence[str], checkpoints: Path) -> list[TrainerCallback]:
    """Return the callbacks of trackers for rank 0.

    Args:
        checkpoints: folder of this training's checkpoints, ``<adapter>.<key>``; its name identifies the run.
    """
    for name, value in PRIVACY.items() if names else ():
        os.environ.setdefault(name, value)
    return [GuardedTracker(name, checkpoints) for name in names]


class GuardedTracker(TrainerCallback):
    """A tracker of transformers that cannot end the training once it has started.

    Only the events train_begin, log and train_end are forwarded. An error in train_begin raises UserError. An error in
    a later event, such as an unreachable server, is logged once and switches the tracker off.
    """

    def __init__(self, name: str, checkpoints: Path):
        self._name, self._checkpoints = name, checkpoints
        self._callback: TrainerCallback | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        args.run_name = self._checkpoints.name.partition(".")[0]
        try:
            with _default_environment(run_environment(self._name, self._checkpoints)):
                self._callback = _create_callback(self._name)
                self._callback.on_train_begin(args, state, control, **kwargs)
        except Exception as error:
            raise UserError(
                f"train.report_to: {self._name} cannot start ({_first_line(error)}); check its environment variables "
                f"and its server, or remove {self._name} from train.report_to in params.yaml."
            ) from None
        if self._name == "mlflow":
            _save_mlflow_run(self._checkpoints / MLFLOW_RUN)

    def on_log(self, args, state, control, **kwargs):
        self._pass_on("on_log", args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        self._pass_on("on_train_end", args, state, control, **kwargs)

    def _pass_on(self, event: str, *arguments, **kwargs) -> None:
        if self._callback is None:
            return
        try:
            getattr(self._callback, event)(*arguments, **kwargs)
        except Exception as error:  # each tracker's client library has its own exceptions
            log.warning("train: %s failed and is switched off (%s)", self._name, _first_line(error))
            self._callback = None


def run_environment(name: str, checkpoints: Path) -> dict[str, str]:
    """Return a tracker's default environment variables: the project, and the id of the run to continue."""
    run, project = checkpoints.name.replace(".", "-"), "tuneline"
    if name == "tensorboard":
        return {"TENSORBOARD_LOGGING_DIR": str(TENSORBOARD_LOGS / run)}
    if name == "mlflow":
        path = checkpoints / MLFLOW_RUN
        known_run = {"MLFLOW_RUN_ID": path.read_text(encoding="utf-8")} if path.is_file() else {}
        return {"MLFLOW_EXPERIMENT_NAME": project, **known_run}
    if name == "wandb":
        return {"WANDB_PROJECT": project, "WANDB_RUN_ID": run, "WANDB_RESUME": "allow"}
    if name == "swanlab":
        return {"SWANLAB_PROJECT": project, "SWANLAB_RUN_ID": run, "SWANLAB_RESUME": "allow"}
    raise ValueError(f"unknown tracker: {name}")


def _create_callback(name: str) -> TrainerCallback:
    from transformers.integrations import get_reporting_integration_callbacks

    (callback_class,) = get_reporting_integration_callbacks([name])
    return callback_class()


def _save_mlflow_run(path: Path) -> None:
    import mlflow

    if (run := mlflow.active_run()) is not None:
        path.write_text(run.info.run_id, encoding="utf-8")


@contextlib.contextmanager
def _default_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set, for the time of the block."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
