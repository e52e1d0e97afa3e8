"""What is wrong with a configuration, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("nowhere.Thing", "No module named 'nowhere'; install it, or export PYTHONPATH=FOLDER, "),
        ("fractions.Fractio", "there is no fractions.Fractio; correct the name"),
        ("own_needy.Thing", "No module named 'nowhere'; install that, which own_needy imports"),
        ("own_broken.Thing", "division by zero; see where: python -c 'import own_broken'"),
        ("own_silent.Thing", "ValueError(); see where: python -c 'import own_silent'"),
    ],
)
def test_what_cannot_be_imported_is_one_line_with_what_to_do(
    target: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    modules = {"needy": "import nowhere", "broken": "1 / 0", "silent": "raise ValueError"}
    for name, text in modules.items():
        (tmp_path / f"own_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    (problem,) = target_problems({"module": {"_target_": target}})
    assert problem.startswith(f"module: {target} must be importable, but {told}")
    assert not caplog.records, "Hydra says it too, in three lines"
