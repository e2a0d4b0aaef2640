"""The trackers that a configuration can name."""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from pipeline.settings import Settings


class TensorBoardSettings(Settings):
    """TensorBoard: event files in the run folder, under tensorboard/."""

    name: Literal["tensorboard"] = "tensorboard"
    """Chooses TensorBoard."""


class WandbSettings(Settings):
    """Weights & Biases; needs `pip install '.[wandb]'`, and `wandb login` or WANDB_API_KEY on the driver's node."""

    name: Literal["wandb"] = "wandb"
    """Chooses Weights & Biases."""
    project: str = "tailorpo"
    """The project that the run appears in."""
    entity: str | None = None
    """The user or team it belongs to; by default that of the account."""
    mode: Literal["online", "offline"] = "online"
    """Offline leaves files in the run folder, under wandb/, which `wandb sync` uploads."""


class MlflowSettings(Settings):
    """MLflow; needs `pip install '.[mlflow]'`."""

    name: Literal["mlflow"] = "mlflow"
    """Chooses MLflow."""
    uri: str
    """Tracking server, such as http://mlflow.example:5000, or file:/shared/mlruns."""
    experiment: str = "tailorpo"
    """The experiment that the run appears in; made if there is none."""

    # Of the whole section, because a fault of the URI's own would be told with the URI.
    @model_validator(mode="after")
    def _holds_no_secret(self) -> "MlflowSettings":
        if urlsplit(self.uri).password is not None:
            raise ValueError(
                "tracking gives mlflow a uri with a password, which the run folder would keep; use the environment "
                "variables MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self


def _spelt_out(value: Any) -> Any:
    """`tensorboard` alone stands for {name: tensorboard}."""
    return {"name": value} if isinstance(value, str) else value


AnyTracker = Annotated[
    Annotated[TensorBoardSettings | WandbSettings | MlflowSettings, Field(discriminator="name")],
    BeforeValidator(_spelt_out),
]
