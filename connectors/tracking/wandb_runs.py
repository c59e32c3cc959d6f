"""A campaign as one run of Weights & Biases, online or to be synchronised later."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from loop.errors import ConfigError, MachineError
from loop.ports import TrackedCampaign, TrackerSetup

if TYPE_CHECKING:
    from wandb import Settings

WAIT_S = 60
"""How long a server may take to begin a run, and to take what is sent."""


def build(setup: TrackerSetup) -> WandbRuns:
    """The tracker of ``tracking.to = "wandb"``.

    Raises:
        ConfigError: Weights & Biases is not installed.
    """
    if find_spec("wandb") is None:
        raise ConfigError("Weights & Biases is not installed; run: pip install 'goldloop[wandb]'.")
    return WandbRuns(setup)


class WandbRuns:
    """One run for each campaign, in the project ``tracking.project``: "project" or "team/project".

    The run's id is the campaign's, and its step the number of the round. Online a run continues
    after its last step, so that nothing is doubled. Offline (``WANDB_MODE=offline``) nobody knows
    what the server has: every time the whole run is written, and the newest folder is the one to
    synchronise.
    """

    def __init__(self, setup: TrackerSetup) -> None:
        self._setup = setup

    def track(self, campaign: TrackedCampaign) -> list[int]:
        """Sends the rounds that the run does not have, the files first; their numbers.

        Raises:
            MachineError: nobody is logged in, or W&B is switched off.
        """
        import wandb

        settings = self._settings()
        self._setup.folder.mkdir(parents=True, exist_ok=True)
        mode = wandb.setup(settings).settings.mode
        if mode == "disabled":
            raise MachineError("WANDB_MODE=disabled switches Weights & Biases off; unset it.")
        if mode != "offline" and not wandb.login(prompt=False, verify=False):
            raise MachineError(
                "Nobody is logged in to Weights & Biases; run `wandb login`, or set WANDB_API_KEY."
            )
        entity, _, project = self._setup.project.rpartition("/")
        run = wandb.init(
            entity=entity or None,
            project=project,
            id=campaign.id,
            name=campaign.name,
            config=dict(campaign.params),
            resume="allow",
            dir=self._setup.folder,
            settings=settings,
        )
        try:
            new = [round_ for round_ in campaign.rounds if round_.number >= run.step]
            if new:
                files = wandb.Artifact(f"report-{campaign.name}", type="report")
                for path in campaign.files:
                    files.add_file(str(path))
                run.log_artifact(files)
            for round_ in new:
                run.log(dict(round_.metrics), step=round_.number)
            offline = run.offline
            folder = run.settings.sync_dir
        finally:
            run.finish()
        if offline:
            self._setup.say(
                f"Weights & Biases is offline; with a network, `wandb sync {folder}` sends the run."
            )
        return [round_.number for round_ in new]

    def _settings(self) -> Settings:
        """Nothing goes out that is not asked for: no console, code, git, machine or packages."""
        from wandb import Settings

        settings = Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            init_timeout=WAIT_S,
            finish_timeout=WAIT_S,
            finish_timeout_raises=True,
            reinit="create_new",  # a run that a notebook has open stays as it is
        )
        if self._setup.uri is not None:
            settings.base_url = self._setup.uri
        return settings
