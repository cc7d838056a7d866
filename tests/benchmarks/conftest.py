from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a script with arguments that it has to refuse, and returns what it says."""

    def run(script: ModuleType, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [script.__name__, *arguments])
        with pytest.raises(SystemExit):
            script.main()
        return capsys.readouterr().err

    return run
