"""A campaign as one run of MLflow: a tracking server, or a database of your own."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from loop.errors import ConfigError
from loop.ports import TrackedCampaign, TrackerSetup

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CAMPAIGN_TAG = "goldloop.campaign"
"""Tag that a run is found by; MLflow chooses a run's own id."""
MOST_PARAMS = 100  # in one request
MOST_VALUE_CHARS = 500  # of a parameter; later versions take more
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""By its own defaults MLflow would hold up the campaign for minutes where its server is down."""


def build(setup: TrackerSetup) -> MlflowRuns:
    """The tracker of ``tracking.to = "mlflow"``.

    Raises:
        ConfigError: MLflow is not installed.
    """
    if find_spec("mlflow") is None:
        raise ConfigError("MLflow is not installed; run: pip install 'goldloop[mlflow]'.")
    return MlflowRuns(setup)


class MlflowRuns:
    """One run for each campaign, in the experiment ``tracking.project``.

    What the run has of a round is not sent again, so that a process which is killed at any point
    doubles nothing. Without ``tracking.uri`` MLflow's own rules say where it writes: the variable
    ``MLFLOW_TRACKING_URI``, else a database in the present folder.
    """

    def __init__(self, setup: TrackerSetup) -> None:
        self._setup = setup

    def track(self, campaign: TrackedCampaign) -> list[int]:
        """Sends the rounds that the run does not have, the files first; their numbers."""
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient(tracking_uri=self._setup.uri)
        run = self._run_of(client, campaign)
        run_id = run.info.run_id
        there = {
            name: {point.step for point in client.get_metric_history(run_id, name)}
            for name in {name for round_ in campaign.rounds for name in round_.metrics}
        }
        missing = {
            round_.number: [
                Metric(name, value, int(round_.at.timestamp() * 1000), round_.number)
                for name, value in round_.metrics.items()
                if round_.number not in there[name]
            ]
            for round_ in campaign.rounds
        }
        new = [number for number, points in missing.items() if points]
        if not new:
            return []
        _log_params(client, run, campaign)
        for path in campaign.files:
            client.log_artifact(run_id, str(path))
        for number in new:
            client.log_batch(run_id, metrics=missing[number])
        client.set_terminated(run_id)
        return new

    def _run_of(self, client: MlflowClient, campaign: TrackedCampaign) -> Run:
        """The campaign's run, made where there is none."""
        experiment = client.get_experiment_by_name(self._setup.project)
        id_ = experiment and experiment.experiment_id
        id_ = id_ or client.create_experiment(self._setup.project)
        mine = f"tags.`{CAMPAIGN_TAG}` = '{campaign.id}'"
        runs = client.search_runs([id_], filter_string=mine)
        tags = {CAMPAIGN_TAG: campaign.id}
        return runs[0] if runs else client.create_run(id_, run_name=campaign.name, tags=tags)


def _log_params(client: MlflowClient, run: Run, campaign: TrackedCampaign) -> None:
    """Those that the run does not have: MLflow refuses to change a parameter."""
    from mlflow.entities import Param

    params = [
        Param(name, str(value)[:MOST_VALUE_CHARS])
        for name, value in campaign.params.items()
        if name not in run.data.params
    ]
    for start in range(0, len(params), MOST_PARAMS):
        client.log_batch(run.info.run_id, params=params[start : start + MOST_PARAMS])
