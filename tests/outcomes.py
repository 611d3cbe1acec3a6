"""The judge of calls with input of any kind: what may come of them, and what may not."""

import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings

import solvers

OURS = tuple(str(Path(package.__file__).parent) for package in (solvers, __import__("vars_ode")))
_SHORTEST = 25  # letters of what can be called a sentence

# By hand, with other draws each time: FUZZ_EXAMPLES=3000 python -m pytest tests -k "hostile"
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def drawn(examples: int) -> settings:
    """The same examples each time; or as many others as FUZZ_EXAMPLES says."""
    return settings(
        max_examples=_EXAMPLES or examples,
        derandomize=not _EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Outcome(NamedTuple):
    """What came of a call: its result, or None where it was refused; and what was warned of on the way."""

    result: Any
    warned: bool
    refusal: str | None


def outcome(call: Callable[[], Any]) -> Outcome:
    """Make a call. Anything raised but one of our errors, a sentence raised by our own code, is an AssertionError."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result, refusal = call(), None
        except (ValueError, solvers.SolverError) as error:
            _check_sentence(error)
            result, refusal = None, str(error)
        except Exception as error:
            raise AssertionError(f"raw: {type(error).__name__}: {error}") from error
    unexpected = [str(w.message) for w in caught if not issubclass(w.category, solvers.SolverWarning)]
    assert not unexpected, f"not one of our warnings: {unexpected}"
    return Outcome(result, bool(caught), refusal)


def _check_sentence(error: Exception) -> None:
    file = traceback.extract_tb(error.__traceback__)[-1].filename
    assert file.startswith(OURS), f"raw: raised in {file}: {error}"
    assert len(str(error)) >= _SHORTEST, f"no sentence: {error}"
    assert " " in str(error).strip(), f"no sentence: {error}"
