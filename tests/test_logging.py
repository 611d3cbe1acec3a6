"""Both packages log under their own names, and are silent until a program sets logging up."""

import logging

import pytest

import solvers
import vars_ode


@pytest.mark.parametrize("package", [solvers, vars_ode])
def test_a_package_logs_under_its_name_and_not_by_itself(package: object, capfd: pytest.CaptureFixture[str]) -> None:
    name = package.__name__  # type: ignore[attr-defined]
    logger = logging.getLogger(name)
    assert [type(handler) for handler in logger.handlers] == [logging.NullHandler]
    script_logger = logging.getLogger(f"{name}.module")
    root, handlers = logging.getLogger(), logging.getLogger().handlers
    root.handlers = []
    try:
        script_logger.error("not shown")
    finally:
        root.handlers = handlers
    assert "not shown" not in capfd.readouterr().err
