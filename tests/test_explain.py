"""What is wrong with a configuration, in words."""

from __future__ import annotations

from lzsweep.explain import known_keys, target_problems


def test_known_keys_are_dotted() -> None:
    keys = known_keys()
    assert {"lr", "network.blocks", "trainer.max_epochs", "study.n_trials"} <= set(keys)


def test_a_users_own_target_is_checked_against_its_signature() -> None:
    good = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}
    assert target_problems({"data": good}) == []
    bad = {"_target_": "textwrap.wrap", "widht": 3}
    assert target_problems({"data": {"inner": [bad]}}) == [
        "data.inner[0].text is missing, but textwrap.wrap needs it"
    ]
    strict = {"_target_": "textwrap.dedent", "txt": "x"}
    assert target_problems({"network": strict}) == [
        "network.text is missing, but textwrap.dedent needs it",
        "network.txt is nothing that textwrap.dedent takes; did you mean text?",
    ]
    (problem,) = target_problems({"module": {"_target_": "no.such.thing"}})
    assert problem.startswith("module: no.such.thing must be importable, but ")
