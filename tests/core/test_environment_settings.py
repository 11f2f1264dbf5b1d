"""Environment variables: an empty one is the default, a wrong one an error that says what is right."""

from __future__ import annotations

import pytest

from dilated_attention_pytorch.environment_settings import COMPILE_WORKERS, PREFIX, SETTINGS, Setting

EACH = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)


@EACH
@pytest.mark.parametrize("value", [None, ""])
def test_default(setting: Setting, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(setting.name, raising=False)
    if value is not None:
        monkeypatch.setenv(setting.name, value)
    assert setting.read() == setting.default
    assert setting.default in setting.choices
    assert setting.name.startswith(PREFIX)


@EACH
def test_choices(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in setting.choices:
        monkeypatch.setenv(setting.name, value)
        assert setting.read() == value


@EACH
@pytest.mark.parametrize("value", ["yes", "AUTO", "-1", "1.0", " "])
def test_another_value_is_refused(setting: Setting, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(setting.name, value)
    with pytest.raises(ValueError, match="must be") as raised:
        setting.read()
    for part in (setting.name, repr(value), *setting.choices):
        assert part in str(raised.value)


def test_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMPILE_WORKERS.name, "12")
    assert COMPILE_WORKERS.read() == "12"
    monkeypatch.setenv(COMPILE_WORKERS.name, "many")
    with pytest.raises(ValueError, match=r"must be auto or a number of processes \(0 for none\), got 'many'"):
        COMPILE_WORKERS.read()
