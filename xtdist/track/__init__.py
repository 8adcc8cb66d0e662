"""Metrics of a run: recorded, sent to MLflow, shown on the console, plotted."""

from xtdist.track.config import StragglerConfig, TrackConfig
from xtdist.track.console import follow, progress_bar
from xtdist.track.goodput import Goodput, Ledger, read_goodput
from xtdist.track.lookup import open_run
from xtdist.track.mlflow import MlflowRun, metric_history, tracking_uri
from xtdist.track.plots import loss_html, loss_png
from xtdist.track.records import Record, Series, Tail, read_series
from xtdist.track.shipper import finish_run
from xtdist.track.tracker import Tracker

__all__ = [
    "Goodput",
    "Ledger",
    "MlflowRun",
    "Record",
    "Series",
    "StragglerConfig",
    "Tail",
    "TrackConfig",
    "Tracker",
    "finish_run",
    "follow",
    "loss_html",
    "loss_png",
    "metric_history",
    "open_run",
    "progress_bar",
    "read_goodput",
    "read_series",
    "tracking_uri",
]
