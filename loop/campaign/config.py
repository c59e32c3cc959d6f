"""The campaign file, ``goldloop.toml``: one model, unknown keys refused, no secrets inside.

Relative paths in the file are relative to the file. Defaults are those of the paper
(arXiv 2504.15432): roberta-base, 3 epochs, batch 16, AdamW at 2e-5, 5 seeds, 3 shots. Another
encoder's learning rate is by default the one that fits it.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from loop.addresses import hidden, names_a_secret, secret_in
from loop.campaign.extensions import Group, is_known, names, needs_of, one_of
from loop.campaign.metrics import METRICS
from loop.errors import ConfigError, suggestion
from loop.prompt import Demonstration, Label, PromptTemplate

MOST_BYTES = 2**24  # no campaign file is larger
PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
WEB = r"^https?://.+$"
LOCAL_OR_WEB = r"^(local|https?://.+)$"
CLUSTER = r"^(auto|local|[^/@\s]+:\d{1,5})$"
FORMS = {
    PLAIN_NAME: "must be 1 to 63 letters (A to Z), digits, dots, - and _, a letter or digit first",
    WEB: "must begin with http:// or https://",
    LOCAL_OR_WEB: "must be 'local' or begin with http:// or https://",
    CLUSTER: "must be 'auto', 'local' or a host and a port, such as 10.0.0.1:6379",
}
"""Pattern of a value -> what the value must be, in words."""
CAMPAIGN_FILE = "goldloop.toml"

OneOrSeveral = BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
"""A single text stands for a list of one."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


@dataclass(frozen=True)
class NoSecret:
    """Refuses an address that holds a password or key, and says where that belongs instead."""

    instead: str

    def __call__(self, given: Any) -> Any:
        """The value as it is given."""
        if isinstance(given, str) and (secret := secret_in(given)):
            raise ValueError(
                f"the address holds {secret}, which would go into the store and the report; take"
                f" it out and {self.instead}"
            )
        return given


def _names_a_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError(
            "this must be the name of an environment variable (capital letters, digits and _), such"
            " as LABEL_STUDIO_API_KEY; the secret itself belongs into that variable"
        )
    return name


def _can_be_a_path(name: str) -> str:
    longest = max(len(part.encode()) for part in name.split("/"))
    if longest > MOST_NAME_BYTES or len(name.encode()) > MOST_PATH_BYTES:
        raise ValueError("is longer than the name of any file or model; look for what is in it")
    return name


MOST_NAME_BYTES, MOST_PATH_BYTES = 255, 4000

Variable = Annotated[str, AfterValidator(_names_a_variable)]
Place = Annotated[
    str,
    AfterValidator(_can_be_a_path),
    BeforeValidator(
        NoSecret("use the settings of the service itself, for Hugging Face the variable HF_TOKEN")
    ),
]


@dataclass(frozen=True)
class Known:
    """Refuses a name that neither goldloop nor an installed package gives a meaning."""

    group: Group

    def __call__(self, name: str) -> str:
        """The name as it is given."""
        if not is_known(self.group, name):
            allowed = names(self.group)
            raise ValueError(
                f"Unknown {one_of(self.group)} {name!r}.{suggestion(name, allowed, begins=True)}"
                f" Available: {', '.join(allowed)}."
            )
        return name


def _without_secrets(options: dict[str, Any]) -> dict[str, Any]:
    for key, value in options.items():
        if names_a_secret(key) or (isinstance(value, str) and secret_in(value)):
            raise ValueError(
                f"{key!r} would put a secret into the store and the report; name an environment"
                f" variable that holds it, such as {key}_env"
            )
    return options


Options = Annotated[dict[str, Any], AfterValidator(_without_secrets)]
"""Settings of another package's part, which only that knows."""


LARGEST = 2**31 - 1
"""Whole numbers that every part takes: databases, tokenizers and random generators."""


class Section(BaseModel):
    """A table of the campaign file; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_kept(cls, value: Any) -> Any:
        """Refuses what the store cannot keep: each round keeps the file as it ran with it."""
        if type(value) is int and value > LARGEST:
            raise ValueError(f"must be at most {LARGEST:,}")
        if (problem := _unkept(value)) is not None:
            raise ValueError(problem)
        return value


def _unkept(value: Any) -> str | None:
    """What in a value no database keeps."""
    if isinstance(value, str):
        return "must not hold a NUL character; take it out" if "\0" in value else None
    if isinstance(value, float):
        return None if math.isfinite(value) else "must be a finite number"
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = [*value, *value.values()]
    elif isinstance(value, list | tuple):
        parts = list(value)
    return next((problem for part in parts if (problem := _unkept(part)) is not None), None)


class Campaign(Section):
    """Who and what."""

    name: Annotated[str, StringConstraints(pattern=PLAIN_NAME)]
    task: Text
    ordinal: bool = False


class LabelSection(Section):
    """One class."""

    name: Text
    description: str = ""


Column = Annotated[str, StringConstraints(min_length=1)]


class Texts(Section):
    """Where the texts come from, and which columns mean what."""

    source: Annotated[Place, StringConstraints(strip_whitespace=True, min_length=1)]
    format: Literal["auto", "csv", "jsonl", "parquet", "excel", "hf"] = "auto"
    text_column: Column = "text"
    gold_column: Column | None = None
    split_column: Column | None = None
    hf_split: str = "train"
    test_frac: Fraction = 0.2
    dev_items: int = Field(60, ge=0)


class DemonstrationSection(Section):
    """One worked example for the prompt."""

    text: Text
    label: Text


class AnnotatorSection(Section):
    """What labels the texts first."""

    kind: Annotated[str, AfterValidator(Known("annotators"))] = "local_lm"
    model: Place = "smollm2-135m"
    columns: tuple[str, ...] = ()
    prob_columns: tuple[str, ...] | None = None
    confidence_scale: Literal["probability", "percent", "0-10", "log"] = "probability"
    batch_size: int = Field(16, ge=1)
    max_text_tokens: int = Field(512, ge=8)
    usd_per_million_tokens: float = Field(0.0, ge=0.0)
    usd_per_million_cached_tokens: float | None = Field(None, ge=0.0)
    usd_per_million_output_tokens: float | None = Field(None, ge=0.0)
    base_url: (
        Annotated[
            str,
            StringConstraints(pattern=WEB),
            BeforeValidator(
                NoSecret(
                    "put the key into the environment variable that annotator.api_key_env names"
                    " (OPENAI_API_KEY)"
                )
            ),
        ]
        | None
    ) = None
    api_key_env: Variable = "OPENAI_API_KEY"
    concurrency: int = Field(8, ge=1)
    chat: bool = False
    votes_when_no_logprobs: int = Field(0, ge=0)
    gpu_memory_utilization: float = Field(0.9, gt=0.0, le=1.0)
    options: Options = {}

    @model_validator(mode="after")
    def _server_needs_url(self) -> AnnotatorSection:
        if self.kind == "openai_server" and not self.base_url:
            raise ValueError(
                'kind = "openai_server" needs base_url, such as http://127.0.0.1:8000/v1'
            )
        return self

    @model_validator(mode="after")
    def _recorded_needs_columns(self) -> AnnotatorSection:
        if self.kind == "recorded" and not self.columns:
            raise ValueError('kind = "recorded" needs columns = ["…"], the columns with LLM labels')
        if self.prob_columns is not None and len(self.prob_columns) != len(self.columns):
            raise ValueError("prob_columns must name one column for each of columns")
        if self.prob_columns is None and self.confidence_scale != "probability":
            raise ValueError("confidence_scale says how prob_columns are written; name these")
        return self


class Prompt(Section):
    """How the LLM is asked."""

    shots: int = Field(3, ge=0, le=64)
    variants: int = Field(3, ge=1, le=32)
    calls_per_item: float = Field(0.0, ge=0.0)
    label_form: Literal["names", "ids"] = "names"
    calibrate: Literal["batch", "gold", "contextual", "none"] = "batch"
    class_prior: dict[str, float] = {}
    demonstrations: tuple[DemonstrationSection, ...] = ()
    refresh: Literal["never", "better", "round"] = "never"
    instruction: Annotated[tuple[Text, ...], OneOrSeveral] = (PromptTemplate().instruction,)
    item: Annotated[tuple[str, ...], OneOrSeveral] = (PromptTemplate().item,)

    @model_validator(mode="after")
    def _templates_are_sound(self) -> Prompt:
        if not self.instruction or not self.item:
            raise ValueError("instruction and item need a template each; leave them out instead")
        for i in range(max(len(self.instruction), len(self.item))):
            template = self.template(i)
            if self.label_form == "ids" and "{labels}" not in template.instruction:
                raise ValueError(
                    'label_form = "ids" needs {labels} in the instruction template, which says'
                    " what the numbers mean"
                )
        return self

    def template(self, index: int) -> PromptTemplate:
        """The wording of variant ``index``; lists are taken in turn.

        Raises:
            ValueError: it is no sound template.
        """
        return PromptTemplate(
            self.instruction[index % len(self.instruction)], self.item[index % len(self.item)]
        )

    @field_validator("calls_per_item")
    @classmethod
    def _first_call_is_due(cls, calls: float) -> float:
        if 0 < calls < 1:
            raise ValueError(
                "must be 0 (every prompt) or at least 1, because the first prompt is always asked"
            )
        return calls


class Strategy(Section):
    """How suspicion is scored, and what is done about items that no human saw."""

    signals: tuple[str, ...] = ("learned_error",)
    repair: Literal["keep", "soft", "weight", "drop", "relabel"] = "soft"
    repair_students: Literal["frozen", "fine-tuned"] = "frozen"

    @property
    def judged(self) -> bool:
        """Whether fine-tuned students judge the labels that they did not learn."""
        return self.repair != "keep" and self.repair_students == "fine-tuned"

    @field_validator("signals")
    @classmethod
    def _known(cls, signals: tuple[str, ...]) -> tuple[str, ...]:
        if not signals:
            raise ValueError("name at least one strategy")
        for name in signals:
            Known("strategies")(name)
            try:
                needs_of(name)
            except ConfigError as exc:  # as a ValueError it gets its line in the file
                raise ValueError(str(exc)) from exc
        return signals


class Budget(Section):
    """What may be spent."""

    labels: int = Field(300, ge=1)
    usd: float | None = Field(None, gt=0.0)
    usd_per_label: float = Field(0.0, ge=0.0)


STOP_RULES = (
    "accuracy=0.8, macro_f1=0.7, reliable_accuracy=0.6, alpha_k=0.8 or p_uc=0.9 (reached),"
    " remaining-error=0.05 (at most 5 % wrong labels), gain=0.01 (a round gains less than 1 point),"
    " plateau (two rounds without a gain)"
)
_WITH_VALUE = (*(key for key in METRICS if key != "churn"), "remaining-error", "gain")


def stop_rule(text: str) -> tuple[str, float]:
    """A stopping rule's name and its value; a plateau's value is 0.

    Raises:
        ValueError: it is no rule; the sentence lists them.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if name == "plateau" and not equals:
        return name, 0.0
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if name not in _WITH_VALUE or not 0 < number < 1:
        raise ValueError(f"{text!r} is not a stopping rule; write {STOP_RULES}")
    return name, number


def _a_stop_rule(text: str) -> str:
    stop_rule(text)
    return text


class Rounds(Section):
    """How the budget is spread."""

    rounds: int = Field(3, ge=1)
    batch_size: int = Field(100, ge=1)
    audit_frac: Fraction = 0.5
    audit: Literal["spread", "uniform"] = "spread"
    stop_below: float | None = Field(None, gt=0.0, lt=1.0)
    stop: tuple[Annotated[str, AfterValidator(_a_stop_rule)], ...] = ()
    seed: int = Field(0, ge=0)


class StudentSection(Section):
    """The classifier that is retrained each round."""

    encoder: Annotated[Place, StringConstraints(strip_whitespace=True, min_length=1)] = (
        "roberta-base"
    )
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float | None = Field(None, gt=0.0)
    weight_decay: float = Field(0.01, ge=0.0)
    warmup_frac: Fraction = 0.05
    max_tokens: int = Field(256, ge=8)
    long_texts: Literal["head_tail", "windows"] = "head_tail"
    class_weights: Literal["none", "balanced"] = "none"
    checkpoint: Literal["last", "best"] = "last"
    seeds: int = Field(5, ge=2)
    if_nothing_learned: Literal["stop", "go on"] = "stop"
    keep_seeds: bool = False
    warm_start: bool = False
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    references: tuple[Literal["llm_only", "random", "all_gold"], ...] = ("llm_only",)
    random_rounds: Literal["each", "last"] = "each"

    @model_validator(mode="after")
    def _warm_start_needs_models(self) -> StudentSection:
        if self.warm_start and not self.keep_seeds:
            raise ValueError(
                "warm_start = true continues from every seed's last model; set keep_seeds = true"
            )
        return self


Rule = Literal["majority", "dawid-skene", "ask-one-more"]


@dataclass(frozen=True)
class Panel:
    """How many people answer an item, and how their answers become one.

    Attributes:
        rule: ``majority`` and ``dawid-skene`` ask ``overlap`` people; ``ask-one-more`` asks that
            many and then one more at a time while nobody leads, up to ``most``.
        early_stop: whether the first two rules ask only as many as can decide, and the rest where
            those differ.
        most: for ``ask-one-more``.
        adjudicator: whose answer decides, where the others' do not; everywhere else too.
    """

    rule: Rule = "majority"
    overlap: int = 1
    early_stop: bool = False
    most: int = 0
    adjudicator: str | None = None

    @property
    def first(self) -> int:
        """People who are asked at once."""
        if self.rule != "ask-one-more" and self.early_stop:
            return self.overlap // 2 + 1
        return self.overlap

    @property
    def last(self) -> int:
        """People who are asked at most, the adjudicator apart."""
        return max(self.overlap, self.most) if self.rule == "ask-one-more" else self.overlap


class PeopleSection(Section):
    """What people are asked, and how their answers become gold labels."""

    platform: Annotated[str, AfterValidator(Known("reviewers"))] = "label_studio"
    options: Options = {}
    assist: Literal["blind", "prefill", "why"] = "blind"
    assist_share: Fraction = 1.0
    note: bool = True
    overlap: int = Field(1, ge=1, le=20)
    rule: Rule = "majority"
    early_stop: bool = False
    max_overlap: int | None = Field(None, ge=1, le=40)
    adjudicator: Text | None = None
    check_frac: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0

    @model_validator(mode="after")
    def _rules_fit(self) -> PeopleSection:
        if self.assist == "blind" and self.assist_share != 1.0:
            raise ValueError('assist_share is for assist = "prefill" or "why"')
        if self.max_overlap is not None and self.rule != "ask-one-more":
            raise ValueError('max_overlap is for rule = "ask-one-more"')
        if self.max_overlap is not None and self.max_overlap < self.overlap:
            raise ValueError(f"max_overlap must be at least overlap, {self.overlap}")
        if self.rule == "dawid-skene" and self.overlap < 2:
            raise ValueError('rule = "dawid-skene" compares people; it needs overlap >= 2')
        return self

    @property
    def platform_name(self) -> str:
        """What people call the platform on which they label."""
        return "Label Studio" if self.platform == "label_studio" else self.platform

    @property
    def panel(self) -> Panel:
        """How many people answer a text, and how their answers become one."""
        return Panel(self.rule, self.overlap, self.early_stop, self.most, self.adjudicator)

    @property
    def most(self) -> int:
        """People who may be asked about one text, the adjudicator apart."""
        if self.rule != "ask-one-more":
            return self.overlap
        return self.max_overlap or self.overlap + 2

    def checks_for(self, texts: int) -> int:
        """Hidden checks that go along with so many texts, as far as there are texts for them."""
        return round(self.check_frac * texts)


OLD_PEOPLE_KEYS = frozenset(PeopleSection.model_fields) - {"platform", "options"}
"""Keys that stood in ``[label_studio]`` before there was ``[people]``."""


class LabelStudioSection(Section):
    """Which Label Studio, where ``people.platform`` is that."""

    url: Annotated[
        str,
        StringConstraints(pattern=LOCAL_OR_WEB),
        BeforeValidator(
            NoSecret(
                "put an access token into the environment variable that label_studio.token_env"
                " names (LABEL_STUDIO_API_KEY)"
            )
        ),
    ] = "local"
    token_env: Variable = "LABEL_STUDIO_API_KEY"


class RatersSection(Section):
    """Simulated people, for demonstrations and research only."""

    kind: Literal["people", "gold", "recorded"] = "people"
    ratings_column: str | None = None

    @model_validator(mode="after")
    def _recorded_needs_column(self) -> RatersSection:
        if self.kind == "recorded" and not self.ratings_column:
            raise ValueError('kind = "recorded" needs ratings_column, a list of labels per text')
        return self


class StoreSection(Section):
    """Where everything is kept."""

    url: (
        Annotated[
            str,
            BeforeValidator(
                NoSecret(
                    "put the password into the environment variable PGPASSWORD or into ~/.pgpass,"
                    " where PostgreSQL's own clients look for it"
                )
            ),
        ]
        | None
    ) = None
    folder: Place = "runs"

    @field_validator("url")
    @classmethod
    def _outlives_the_process(cls, url: str | None) -> str | None:
        """Refuses what cannot keep a campaign: databases in memory, and of other kinds."""
        if url is None:
            return None
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            parsed = make_url(url)
            kind = parsed.get_backend_name()
        except ArgumentError:
            kind = ""
        if kind not in ("sqlite", "postgresql"):
            raise ValueError(
                "must be a URL of an SQLite or PostgreSQL database, such as sqlite:///campaign.db"
                " or postgresql+psycopg://user@host/database"
            )
        if kind == "sqlite":
            file = parsed.database or ""
            if not file or file == ":memory:" or file.startswith("file:") or parsed.host:
                raise ValueError(
                    f"{url!r} names no file, so that the campaign would be lost when the command"
                    " ends; name one, such as sqlite:///campaign.db, or leave store.url out"
                )
        return url


class TrackingSection(Section):
    """Where each measured round is sent, besides the campaign's own report."""

    to: Annotated[tuple[Annotated[str, AfterValidator(Known("trackers"))], ...], OneOrSeveral] = ()
    project: Text = "goldloop"
    uri: (
        Annotated[
            str,
            BeforeValidator(
                NoSecret(
                    "put the whole address into the environment variable MLFLOW_TRACKING_URI, or"
                    " the secret alone into MLFLOW_TRACKING_PASSWORD or WANDB_API_KEY"
                )
            ),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _one_address_each(self) -> TrackingSection:
        if self.uri is not None and len(self.to) > 1:
            raise ValueError(
                "uri is the address of one tracker; with two, set MLFLOW_TRACKING_URI and"
                " WANDB_BASE_URL in the environment instead"
            )
        return self


class ExecutorSection(Section):
    """Where the heavy work is done: the local LLM, embeddings, students, ``goldloop predict``."""

    kind: Literal["local", "ray"] = "local"
    address: Annotated[
        str,
        StringConstraints(pattern=CLUSTER),
        BeforeValidator(
            NoSecret("put the cluster's token into the environment variable RAY_AUTH_TOKEN")
        ),
    ] = "auto"
    workers: int | None = Field(None, ge=1)
    gpus_per_worker: float | None = Field(None, ge=0.0)


class Config(Section):
    """A whole campaign file."""

    campaign: Campaign
    labels: tuple[LabelSection, ...] = Field(min_length=2)
    texts: Texts
    annotator: AnnotatorSection = AnnotatorSection()
    prompt: Prompt = Prompt()
    strategy: Strategy = Strategy()
    budget: Budget = Budget()
    rounds: Rounds = Rounds()
    student: StudentSection = StudentSection()
    people: PeopleSection = PeopleSection()
    label_studio: LabelStudioSection = LabelStudioSection()
    raters: RatersSection = RatersSection()
    store: StoreSection = StoreSection()
    tracking: TrackingSection = TrackingSection()
    executor: ExecutorSection = ExecutorSection()

    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _lr_why: str = PrivateAttr(default="")
    _old_keys: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def _old_files_are_read(cls, given: Any) -> Any:
        return with_people(given)[0] if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        names = [label.name for label in self.labels]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"label names must differ; given twice: {', '.join(twice)}")
        for demo in self.prompt.demonstrations:
            if demo.label not in names:
                raise ValueError(
                    f"prompt.demonstrations: unknown label {demo.label!r};"
                    f"{suggestion(demo.label, names)} allowed: {', '.join(names)}"
                )
        prior = self.prompt.class_prior
        if prior and (set(prior) != set(names) or min(prior.values()) <= 0):
            raise ValueError("prompt.class_prior needs one positive share for every label")
        if self.rounds.batch_size > self.budget.labels:
            raise ValueError(
                f"rounds.batch_size {self.rounds.batch_size} is larger than budget.labels"
                f" {self.budget.labels}; lower the batch or raise the budget"
            )
        if self.raters.kind != "people" and self.people.platform != "label_studio":
            raise ValueError(
                f"raters.kind = {self.raters.kind!r} simulates people in Label Studio; with"
                f" people.platform = {self.people.platform!r} leave it out"
            )
        if self.raters.kind == "gold" and not self.texts.gold_column:
            raise ValueError('raters.kind = "gold" needs texts.gold_column')
        wants_gold = {"random", "all_gold"} & set(self.student.references)
        if wants_gold and not self.texts.gold_column:
            raise ValueError(
                f"student.references {sorted(wants_gold)} need texts.gold_column: they compare"
                " with gold labels for the whole pool"
            )
        variants = len(self.annotator.columns) or self.prompt.variants
        if self.annotator.kind == "recorded" and self.prompt.calibrate == "contextual":
            raise ValueError(
                'prompt.calibrate = "contextual" asks the LLM about empty texts, which'
                ' annotator.kind = "recorded" cannot answer; take "batch"'
            )
        unordered = [s for s in self.strategy.signals if "ordinal" in needs_of(s)]
        if unordered and not self.campaign.ordinal:
            raise ValueError(
                f"strategy {unordered[0]!r} is for labels in a meaningful order; set"
                " campaign.ordinal = true if yours are"
            )
        starved = [s for s in self.strategy.signals if "votes" in needs_of(s) and variants < 2]
        if starved:
            raise ValueError(f"strategy {starved[0]!r} needs prompt.variants >= 2, not {variants}")
        return self

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in the order of their indices."""
        return tuple(label.name for label in self.labels)

    @property
    def label_index(self) -> dict[str, int]:
        """Each class's index by its name."""
        return {name: i for i, name in enumerate(self.label_names)}

    @property
    def port_labels(self) -> tuple[Label, ...]:
        """Classes as the ports want them."""
        return tuple(Label(label.name, label.description) for label in self.labels)

    @property
    def given_demonstrations(self) -> tuple[Demonstration, ...]:
        """Worked examples that stand in the campaign file."""
        return tuple(Demonstration(d.text, d.label) for d in self.prompt.demonstrations)

    def with_lr(self, lr: float, why: str) -> Config:
        """The same file with a learning rate that it does not name itself.

        Args:
            why: what the rate does, such as "fits minilm".
        """
        config = self.model_copy(update={"student": self.student.model_copy(update={"lr": lr})})
        config._lr_why = why
        return config

    @property
    def lr_why(self) -> str:
        """Why ``student.lr`` is what it is; empty where the file names it."""
        return self._lr_why

    @property
    def old_keys_note(self) -> str | None:
        """Which keys stand where an earlier version had them, and where they belong now."""
        if not self._old_keys:
            return None
        return (
            f"{', '.join(self._old_keys)}: these keys are about people and now belong into the"
            " section [people] of the campaign file. In [label_studio] they are read as before;"
            " move them when you next edit the file."
        )

    @property
    def calibration(self) -> str:
        """How the LLM's answers are calibrated.

        Recorded labels with a confidence each stay the labels that were recorded, unless the file
        asks for calibration by name.
        """
        stated = self.annotator.kind == "recorded" and self.annotator.prob_columns is not None
        if stated and "calibrate" not in self.prompt.model_fields_set:
            return "none"
        return self.prompt.calibrate

    @property
    def folder(self) -> Path:
        """The folder of the campaign file."""
        return self._folder

    @property
    def out(self) -> Path:
        """Where models, caches and reports go."""
        return self._folder / self.store.folder

    @property
    def store_url(self) -> str:
        """Where the store is; SQLite beside the campaign file unless told otherwise."""
        from sqlalchemy import make_url

        url = make_url(self.store.url or f"sqlite:///{self.campaign.name}.db")
        if url.get_backend_name() == "sqlite":
            url = url.set(database=str(self._folder.resolve() / str(url.database)))
        return url.render_as_string(hide_password=False)

    @property
    def source(self) -> str:
        """The text source, absolute where it is a file."""
        source = self.texts.source
        return source if source.startswith("hf:") else str(self._folder / source)


def with_people(data: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A file's tables with what is about people in ``[people]``, and the keys that were moved.

    Earlier versions had them in ``[label_studio]``.

    Raises:
        ValueError: a key stands in both.
    """
    old, people = data.get("label_studio"), data.get("people", {})
    if not isinstance(old, Mapping) or not isinstance(people, Mapping):
        return dict(data), ()
    keys = tuple(key for key in old if key in OLD_PEOPLE_KEYS)
    if twice := [key for key in keys if key in people]:
        raise ValueError(
            f"{twice[0]} stands in [people] and in [label_studio]; keep the one in [people]"
        )
    kept = {key: value for key, value in old.items() if key not in keys}
    moved = {**people, **{key: old[key] for key in keys}}
    return {**data, "label_studio": kept, **({"people": moved} if moved else {})}, keys


def section_of(field: FieldInfo) -> type[BaseModel]:
    """The table that a key of the file stands for, or the tables, where it is a list."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))


def as_run(stored: Mapping[str, Any]) -> Config:
    """The campaign file as a round ran with it, for what is said of that round.

    A key that the file did not know then has its default. Nothing is checked again: a package that
    the file names may be gone since. ``folder`` is not that of the file.

    Args:
        stored: the file as the store keeps it with the round.
    """
    stored = with_people(stored)[0]
    sections: dict[str, Any] = {
        name: section_of(field).model_construct(**stored.get(name, {}))
        for name, field in Config.model_fields.items()
        if name != "labels"
    }
    labels = tuple(LabelSection.model_construct(**label) for label in stored["labels"])
    return Config.model_construct(labels=labels, **sections)


def load(path: Path) -> Config:
    """Reads and checks a campaign file.

    Raises:
        ConfigError: every problem found, one sentence a line, each with its line number.
    """
    return read(text_of(path), path)


def text_of(path: Path) -> str:
    """What stands in a campaign file, without a byte order mark and carriage returns.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:  # a device has no end
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as exc:
        raise ConfigError(
            f"No campaign file at {path}. Write one with `goldloop init`, or name it with --file."
        ) from exc
    except IsADirectoryError as exc:
        raise ConfigError(f"{path} is a folder; name the campaign file in it with --file.") from exc
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc}.") from exc
    if len(data) > MOST_BYTES:
        raise ConfigError(
            f"{path} is larger than {MOST_BYTES // 2**20} MB, so it is no campaign file; name that"
            " with --file."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            f"{path}:{line}: The file is not in UTF-8 (byte 0x{data[exc.start]:02x}); save it as"
            " UTF-8."
        ) from exc
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read(text: str, path: Path) -> Config:
    """Checks what stands, or shall stand, in the campaign file ``path``.

    Raises:
        ConfigError: see :func:`load`.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: {exc}. Correct the TOML there.") from exc
    except (ValueError, RecursionError) as exc:  # thousands of digits, or of brackets
        raise ConfigError(
            f"{path}: a number has too many digits, or lists are nested too deeply. Look for what"
            " was put in by mistake."
        ) from exc
    try:
        config = Config.model_validate(data)
    except ValidationError as exc:
        errors = exc.errors()
        # A label that is wrong is not one that is missing as well.
        wrong_label = any(e["loc"][:1] == ("labels",) and len(e["loc"]) > 1 for e in errors)
        problems = [
            _sentence(e, text) for e in errors if not wrong_label or e["loc"] != ("labels",)
        ]
        raise ConfigError("\n".join(f"{path}{problem}" for problem in problems)) from exc
    config._folder = path.resolve().parent
    config._old_keys = with_people(data)[1]
    return config


def line_of(text: str, loc: tuple[str | int, ...]) -> int | None:
    """1-based line of a key such as ``("student", "lr")`` or ``("labels", 1, "name")``.

    TOML readers drop positions, so this looks for the key under its header; None if not found.
    """
    tables: dict[str, int] = {}
    where: tuple[str | int, ...] = ()
    best: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if header := re.match(r"^\[\[\s*([\w.\-]+)\s*\]\]", stripped):
            name = header[1]
            tables[name] = tables.get(name, -1) + 1
            where = (*name.split("."), tables[name])
        elif header := re.match(r"^\[\s*([\w.\-]+)\s*\]", stripped):
            where = tuple(header[1].split("."))
        elif key := re.match(r"^\"?([\w\-]+)\"?\s*[=.]", stripped):
            if loc[: len(where) + 1] == (*where, key[1]):
                return number
            continue
        else:
            continue
        if loc[: len(where)] == where:
            best = number
    return best


def _sentence(error: Any, text: str) -> str:
    """One of pydantic's errors as ``:line: sentence``."""
    loc: tuple[str | int, ...] = tuple(error["loc"])
    line = line_of(text, loc)
    if loc[:1] == ("people",) and (old := line_of(text, ("label_studio", *loc[1:]))):
        line = line if line_of(text, ("people",)) else old  # the key stands where it used to
    at = f":{line}: " if line else ": "
    name = ".".join(str(part) for part in loc)
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _known_keys(loc[:-1])
        where = f"[{'.'.join(str(p) for p in loc[:-1])}]" if len(loc) > 1 else "the file"
        hint = suggestion(loc[-1], known, begins=True)
        return f"{at}Unknown key {loc[-1]!r} in {where}.{hint} Allowed: {', '.join(known)}."
    if kind == "missing":
        return f"{at}{name} is missing; add it."
    message = error["msg"].removeprefix("Value error, ").rstrip(".")
    if kind == "value_error":
        return f"{at}{f'{name}: ' if name else ''}{message}."
    if kind == "too_short" and isinstance(error.get("input"), str):
        kind = "string_too_short"
    if kind == "string_pattern_mismatch":
        message = FORMS.get(error["ctx"]["pattern"], message)
    elif kind in WANTED:
        message = WANTED[kind].format(**error.get("ctx", {}))
    given = hidden(repr(error.get("input")))
    return f"{at}{name} = {given if len(given) <= 80 else f'{given[:79]}…'}: {message}."


WANTED = {
    "string_type": "must be a text, in quotes",
    "string_too_short": "must not be empty",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false, without quotes"),
    "tuple_type": "must be a list, in square brackets",
    **dict.fromkeys(("dict_type", "model_type"), "must be a table of keys and values"),
    "literal_error": "must be {expected}",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "needs {min_length} or more entries",
}
"""pydantic's kinds of errors -> what the value must be; ``{}`` are names of pydantic's own."""


def _known_keys(loc: tuple[str | int, ...]) -> list[str]:
    """The keys of the table at a location."""
    model: type[BaseModel] = Config
    for part in loc:
        if isinstance(part, str):
            model = section_of(model.model_fields[part])
    return list(model.model_fields)
