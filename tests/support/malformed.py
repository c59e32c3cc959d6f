"""Answers as no labelling page sends them, each with what is to be read from it."""

import json

from connectors.label_studio.page import FROM_NAME, choice_result

ELSEWHERE = "answer from another page"
NOTE = {"from_name": "note", "to_name": "text", "type": "textarea"}


def part(value, **more):
    known = {"from_name": FROM_NAME, "to_name": "text", "type": "choices", "value": value}
    return known | more


def chose(choices):
    return [part({"choices": choices})]


def noted(value, label="good"):
    return [*choice_result(label), {**NOTE, "value": value}]


def nested(depth):
    whole = []
    for _ in range(depth):
        whole = [whole]
    return whole


RESULTS = {
    # name: (result, the problem; None where "good" is read all the same)
    "null result": (None, "empty result"),
    "empty result": ([], "empty result"),
    "bare string": ("good", "result that is not a list"),
    "number for a result": (7, "result that is not a list"),
    "true for a result": (True, "result that is not a list"),
    "object for a result": ({"choices": ["good"]}, "result that is not a list"),
    "parts that are no objects": (["good", 7, None, [1]], "empty result"),
    "no value": ([{"from_name": FROM_NAME, "type": "choices"}], "empty result"),
    "null value": ([part(None)], "empty result"),
    "string for a value": ([part("good")], "choices that are not a list"),
    "list for a value": ([part(["good"])], "choices that are not a list"),
    "number for a value": ([part(7)], "choices that are not a list"),
    "null choices": (chose(None), "empty result"),
    "no choices": (chose([]), "empty result"),
    "choices that are a string": (chose("good"), "choices that are not a list"),
    "choices that are a number": (chose(7), "choices that are not a list"),
    "choices that are an object": (chose({"good": True}), "choices that are not a list"),
    "a choice that is a number": (chose([7]), "choice that is not text"),
    "a choice that is null": (chose([None]), "choice that is not text"),
    "a choice that is a list": (chose([["good"]]), "choice that is not text"),
    "a choice that is an object": (chose([{"value": "good"}]), "choice that is not text"),
    "two choices": (chose(["good", "bad"]), "several choices"),
    "the same choice twice": (chose(["good", "good"]), "several choices"),
    "a good part and a bad one": ([*chose(["good"]), part("bad")], "choices that are not a list"),
    "other spelling": (chose(["Good"]), "unknown label 'Good'"),
    "empty choice": (chose([""]), "unknown label ''"),
    "NUL in a choice": (chose(["good\0"]), "unknown label 'good\\x00'"),
    "another tag": ([part({"choices": ["good"]}, from_name="x\0")], ELSEWHERE),
    "a tag that is a list": ([part({"choices": ["good"]}, from_name=["x"])], ELSEWHERE),
    "only a note": ([{**NOTE, "value": {"text": ["hm"]}}], "empty result"),
    "unsure": (chose(["Unsure / none fits"]), "unsure"),
    "nested surprises": (nested(300), "nested too deeply"),
    "a note that is a number": (noted({"text": 7}), None),
    "a note that is a string": (noted({"text": "hm"}), None),
    "a note without an object": (noted("hm"), None),
    "a note of lists": (noted({"text": [["a"], None, {"b": 1}, "c"]}), None),
    "NUL in a note": (noted({"text": ["before\0after"]}), None),
    "a long note": (noted({"text": ["x" * 200_000]}), None),
}
"""Results that the fake server and, but for ``SURROGATES``, a real one are given."""

SURROGATES = {
    "half a pair in a note": (noted({"text": ["half \ud800"]}), None),
    "half a pair in a choice": (chose(["good\udc00"]), "unknown label 'good\\udc00'"),
}

FIELDS = {
    # name: (what replaces fields of the answer, the problem)
    "no id": ({"id": None}, "no number of its own"),
    "an id in words": ({"id": "seven"}, "no number of its own"),
    "an id that is a list": ({"id": [7]}, "no number of its own"),
    "a negative id": ({"id": -7}, "no number of its own"),
    "true for an id": ({"id": True}, "no number of its own"),
    "a huge id": ({"id": 10**40}, "no number of its own"),
    "an id in digits": ({"id": "123456"}, None),
    "nobody": ({"completed_by": None}, None),
    "a user object": ({"completed_by": {"id": 1, "email": "a"}}, None),
    "an empty user object": ({"completed_by": {}}, "unknown person"),
    "a person in words": ({"completed_by": "ann"}, "unknown person"),
    "a list of people": ({"completed_by": [1, 2]}, "unknown person"),
    "a huge person": ({"completed_by": 10**40}, "unknown person"),
    "a person that is half a number": ({"completed_by": 1.5}, "unknown person"),
    "time taken in words": ({"lead_time": "long"}, None),
    "time taken as a list": ({"lead_time": [1]}, None),
    "a negative time taken": ({"lead_time": -3}, None),
    "a huge time taken": ({"lead_time": 10**400}, None),
    "a change in words": ({"updated_at": "yesterday"}, None),
    "no time of change": ({"updated_at": None}, None),
    "a number for a change": ({"updated_at": 7}, None),
    "an impossible change": ({"updated_at": "0001-01-01T00:00:00+14:00"}, None),
    "a change in NUL": ({"updated_at": "\0"}, None),
    "cancelled in words": ({"was_cancelled": "no"}, "neither skipped nor answered"),
    "cancelled by an object": ({"was_cancelled": {}}, "neither skipped nor answered"),
}

WHOLE = {
    # name: (the whole answer, the problem)
    "null": (None, "no JSON object"),
    "true": (True, "no JSON object"),
    "a number": (7, "no JSON object"),
    "a string": ("good", "no JSON object"),
    "NUL": ("\0", "no JSON object"),
    "a list": ([{"id": 1}], "no JSON object"),
    "an empty object": ({}, "no number of its own"),
    "not a number": (b'{"id": 9, "lead_time": NaN, "x": -Infinity}', "empty result"),
    "beyond all numbers": (b'{"id": 9, "completed_by": 1, "x": 1e999}', "empty result"),
    "digits without end": (b'{"id": ' + b"1" * 6000 + b"}", "no number of its own"),
}


def answer_shapes(valid):
    """Name -> (answer, problem), for one valid answer of Ann that chose "good"."""
    shapes = {
        name: (valid | {"result": r}, p) for name, (r, p) in {**RESULTS, **SURROGATES}.items()
    }
    shapes |= {name: (valid | fields, problem) for name, (fields, problem) in FIELDS.items()}
    return shapes | WHOLE


# answers put together at random, with what they mean

PERSON_OF = {  # what may stand for who answered -> whom it names
    "1": "ann@x.org",
    '{"id": 2, "email": "x"}': "bob@x.org",
    '"2"': "bob@x.org",
    "77": "user 77",
    "null": "deleted user",
}
ASIDE = [  # parts beside the label that change nothing
    {**NOTE, "value": {"text": ["good", "bad"]}},
    {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
    {"from_name": "topic", "type": "choices", "value": {"choices": ["bad"]}},
    {"from_name": "stars", "type": "rating", "value": {"rating": 5}},
    {"from_name": FROM_NAME, "type": "choices", "value": {"choices": []}},
    {"from_name": FROM_NAME, "type": "choices", "value": {}},
    "bad",
    None,
    7,
]
MORE = {  # fields of an answer that change nothing
    "prediction": {"result": chose(["bad"]), "score": 0.9},
    "parent_prediction": 3,
    "draft_created_at": None,
    "drafts": [{"result": chose(["bad"])}],
    "ground_truth": True,
    "label": "bad",
    "choice": "bad",
    "choices": ["bad"],
    "task": 10**30,
    "lead_time": "NaN",
    "unique_id": "\0",
    "updated_at": 7,
    "": {"": [""]},
}
MISSPELT = [
    lambda name: name.upper(),
    lambda name: f" {name}",
    lambda name: f"{name}.",
    lambda name: name * 2,
    lambda name: f'"{name}"',
    lambda name: name[:-1],
    lambda name: f"{name}\u200b",
    lambda name: f"<b>{name}</b>",
    lambda name: f"Label: {name}",
    lambda name: [name],
    lambda name: {"value": name},
    lambda name: None,
    lambda name: "",
    lambda name: f"not {name}",
    lambda name: "1",
    lambda name: 0,
    lambda name: True,
]


class RandomAnswer:
    """An answer put together at random, by somebody who keeps what it means.

    Args:
        valid: an answer of Ann.
        names: what the page calls each label -> the label.

    Attributes:
        body: what the server sends.
        label: what it means, or None.
        reason: how the reason begins why it means no label; None where it does.
        person: who answered.
    """

    def __init__(self, rng, valid, names):
        name = rng.choice(list(names))
        self.label, self.reason, self.person = names[name], None, "ann@x.org"
        self.body = dict(valid, result=self._result(rng, name, names))
        for key in rng.sample(list(MORE), rng.choice([0, 0, 1, 4])):
            self.body[key] = MORE[key]
        # Faults from the inside to the outside: what is read first is what is told.
        if rng.random() < 0.1:
            odd = rng.choice([None, {}, name, 7, {"choices": [name]}, True])
            self.body["result"] = odd
            self.reason = "empty result" if odd is None else "result that is not a list"
        if rng.random() < 0.1:
            cancelled = self.body["was_cancelled"] = rng.choice([True, "true", 0, 1, [], None])
            if cancelled is not None:
                self.reason = "skipped" if cancelled is True else "neither skipped nor answered"
        who = rng.choice(list(PERSON_OF))
        if rng.random() < 0.06:
            who = rng.choice(['"ann"', "{}", "[1]", "1.5", "true", "-1"])
        self.body["completed_by"] = json.loads(who)
        self.person = PERSON_OF.get(who, "unknown person")
        if who not in PERSON_OF:
            self.reason = self.person
        if rng.random() < 0.06:
            self.body["id"] = rng.choice([None, "x", [1], {}, -1, True, 10**30, 1.5])
            self.reason = "no number of its own"
        if rng.random() < 0.04:
            self.body["more"], self.reason = nested(200), "nested too deeply"
        if rng.random() < 0.04:
            self.body = rng.choice([None, name, 7, True, [name], [self.body]])
            self.reason, self.person = "no JSON object", "deleted user"  # nobody is named
        if self.reason is not None:
            self.label = None

    def _result(self, rng, name, names):
        its = part({"choices": [name]}, **rng.choice([{}, {"id": "x", "score": 0.1}]))
        parts = [rng.choice(ASIDE) for _ in range(rng.choice([0, 0, 1, 3]))]
        kind = rng.random()
        if kind < 0.1:
            wrong = rng.choice(MISSPELT)(name)
            its = part({"choices": [wrong]})
            if not isinstance(wrong, str):
                self.reason = "choice that is not text"
            elif wrong not in names:  # which spells no other label either
                self.reason = "unknown label"
        elif kind < 0.2:
            other = rng.choice([*names, "Unsure / none fits", "x", 3])
            its, self.reason = part({"choices": [name, other]}), "several choices"
        elif kind < 0.25:
            its, self.reason = part({"choices": ["Unsure / none fits"]}), "unsure"
        elif kind < 0.35:
            value = rng.choice([name, [name], {"choices": name}, {"choices": {name: 1}}, 1, True])
            its, self.reason = part(value), "choices that are not a list"
        elif kind < 0.4:
            its = rng.choice([None, part(None), part({"choices": []}), part({"text": [name]})])
            tags = {p.get("from_name") for p in parts if isinstance(p, dict)}
            self.reason = ELSEWHERE if tags & {"topic", "stars"} else "empty result"
        parts.insert(rng.randint(0, len(parts)), its)
        return parts
