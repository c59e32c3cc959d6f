"""The house: every module has the test of its name, and no folder is crowded or nearly empty."""

from pathlib import Path

import pytest

from tests import import_floors

ROOT = Path(__file__).parent.parent
FEWEST, MOST = 4, 12
FEW = {
    "connectors": "holds folders only",
    "connectors.tracking": "one file for each tracker",
    "loop.campaign.migrations": "laid out by alembic",
}
"""Folders of another size, with the reason."""

MODULES = {
    name: path
    for name, path in import_floors.modules().items()
    if path.name != "__init__.py" and "migrations" not in path.parts
}

TESTED_BY = {
    "loop.addresses": "loop/test_secrets.py",
    "loop.people.tally": "loop/people/test_unreadable_answers.py",
    "loop.hardware": "loop/student/test_encoder_student.py",
    "loop.next_round": "loop/test_round.py",
    "loop.pool_arrays": "loop/test_no_leaks.py",
    "loop.training_sets": "loop/test_round.py",
    "loop.campaign.llm_store": "loop/campaign/test_store.py",
    "loop.campaign.campaign_file": "loop/cli/test_main.py",
    "loop.campaign.tables": "loop/campaign/test_store.py",
    "loop.llm.votes": "loop/llm/test_ask.py",
    "loop.people.answers": "loop/people/test_panels.py",
    "loop.people.forgotten": "loop/operate/test_forget.py",
    "loop.people.person": "loop/people/test_panels.py",
    "loop.people.review_tasks": "loop/people/test_panels.py",
    "loop.people.scorecards": "loop/people/test_panels.py",
    "loop.student.train_seed": "loop/student/test_encoder_student.py",
    "loop.student.inference": "loop/student/test_encoder_student.py",
    "loop.student.encoder_files": "loop/student/test_encoder_student.py",
    "loop.student.speedups": "loop/student/test_encoder_student.py",
    "loop.student.seed_jobs": "loop/student/test_student_faults.py",
    "loop.executor.crew": "loop/executor/test_contract.py",
    "loop.executor.folders": "loop/executor/test_contract.py",
    "loop.executor.local": "loop/executor/test_contract.py",
    "loop.executor.ray_actors": "loop/executor/test_contract.py",
    "loop.llm.elsewhere": "loop/executor/test_contract.py",
    "loop.measure.metric": "loop/measure/test_stability.py",
    "loop.report.collect": "loop/report/test_html.py",
    "loop.report.contents": "loop/report/test_html.py",
    "loop.report.wording": "loop/report/test_html.py",
    "loop.report.plots": "loop/report/test_html.py",
    "loop.report.rounds_json": "loop/report/test_html.py",
    "loop.report.terminal_table": "loop/report/test_html.py",
    "loop.report.status": "loop/cli/test_main.py",
    "loop.studies.side_runs": "loop/studies/test_plateau.py",
    "loop.deliver.candidates": "loop/deliver/test_final_model.py",
    "loop.deliver.saved_models": "loop/deliver/test_final_model.py",
    "loop.deliver.model_card": "loop/deliver/test_final_model.py",
    "loop.deliver.export": "loop/cli/test_main.py",
    "loop.operate.archive": "loop/operate/test_backup.py",
    "loop.serve.tokens": "loop/serve/test_app.py",
    "loop.serve.metrics": "loop/serve/test_app.py",
    "loop.serve.puller": "loop/serve/test_app.py",
    "loop.serve.current_student": "loop/serve/test_app.py",
    "loop.serve.progress": "loop/serve/test_app.py",
    "loop.bench.learners": "loop/bench/test_run.py",
    "loop.bench.peers": "loop/bench/test_run.py",
    "loop.bench.policies": "loop/bench/test_run.py",
    "loop.bench.replay": "loop/bench/test_run.py",
    "loop.bench.data_sets": "loop/bench/test_run.py",
    "loop.bench.tables": "loop/bench/test_run.py",
    "loop.cli.build": "loop/campaign/test_context.py",
    "loop.cli.campaign": "loop/cli/test_main.py",
    "loop.cli.face": "test_goldloop.py",
    "loop.cli.operations": "loop/cli/test_main.py",
    "loop.cli.reports": "loop/cli/test_main.py",
    "loop.cli.rounds": "loop/cli/test_main.py",
    "loop.cli.serving": "connectors/label_studio/test_serve_campaign.py",
    "loop.cli.studies": "loop/cli/test_main.py",
    "connectors.label_studio.ml_backend": "loop/serve/test_app.py",
    "connectors.label_studio.client": "connectors/label_studio/test_faults.py",
    "connectors.label_studio.pull": "connectors/label_studio/test_faults.py",
    "connectors.label_studio.push": "connectors/label_studio/test_faults.py",
    "connectors.label_studio.withdraw": "connectors/label_studio/test_people.py",
    "connectors.llm.label_spelling": "connectors/llm/test_recorded.py",
    "connectors.llm.local_scorer": "connectors/llm/test_local_lm.py",
    "connectors.llm.server_exact": "connectors/llm/test_openai_server.py",
    "connectors.llm.server_http": "connectors/llm/test_openai_server.py",
    "connectors.llm.server_listed": "connectors/llm/test_openai_server.py",
    "connectors.llm.server_ways": "connectors/llm/test_openai_server.py",
    "connectors.texts.formats": "connectors/texts/test_read.py",
    "connectors.texts.values": "connectors/texts/test_read.py",
    "connectors.texts.write": "connectors/texts/test_read.py",
    "connectors.downloads.archives": "connectors/downloads/test_packages.py",
    "connectors.downloads.gguf": "connectors/downloads/test_packages.py",
    "connectors.downloads.models": "connectors/downloads/test_packages.py",
    "connectors.tracking.mlflow_runs": "loop/deliver/test_track.py",
    "connectors.tracking.wandb_runs": "loop/deliver/test_track.py",
    "strategies.pool": "strategies/test_contract.py",
    "strategies.needs": "strategies/test_contract.py",
    "strategies.signals.components": "strategies/test_select.py",
    "strategies.signals.uncertainty": "strategies/test_contract.py",
    "strategies.signals.consistency": "strategies/test_contract.py",
    "strategies.signals.benefit": "strategies/test_contract.py",
}
"""Modules without a test file of their own: which test has them at work instead."""


def file_of_test(module):
    *folders, name = module.split(".")
    return "/".join([*folders, f"test_{name.strip('_')}.py"])


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_the_test_of_its_name(module):
    own = ROOT / "tests" / file_of_test(module)
    if module in TESTED_BY:
        assert not own.exists(), f"{module} has a test of its own; take it out of the table"
        assert (ROOT / "tests" / TESTED_BY[module]).exists()
    else:
        assert own.exists(), f"{module} has no test {file_of_test(module)}"


def test_the_table_names_modules_that_exist():
    assert set(TESTED_BY) <= set(MODULES)


def test_folders_hold_four_to_twelve_files():
    sizes = {}
    for name, path in MODULES.items():
        folder = name.rpartition(".")[0]
        if folder:
            sizes.setdefault(folder, []).append(path)
    for folder, files in sizes.items():
        if folder not in FEW:
            assert FEWEST <= len(files) <= MOST, (folder, len(files))
