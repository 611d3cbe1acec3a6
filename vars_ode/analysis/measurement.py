"""What every measurement can do beside holding its numbers: be drawn, and leave as rows, as a data frame, as CSV."""

from __future__ import annotations

import csv
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Row = dict[str, Any]


class Measurement(ABC):
    """Base of the results. Concrete ones are frozen dataclasses of numbers, strings and tensors on the CPU."""

    @abstractmethod
    def plot(self) -> Figure:
        """A figure of its own (no global state, Agg canvas): `figure.savefig("plot.png")`."""

    @abstractmethod
    def to_rows(self) -> list[Row]:
        """One flat mapping per number measured, all with the same keys; None for what does not exist."""

    @abstractmethod
    def findings(self) -> list[str]:
        """What the numbers say, in sentences."""

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows; returns the path."""
        path, rows = Path(path), self.to_rows()
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
        return path

    def to_dataframe(self) -> Any:
        """The rows as a `pandas.DataFrame`; an ImportError where pandas, which is no dependency, is missing."""
        try:
            import pandas  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise ImportError(
                "to_dataframe needs pandas, which is not installed and no dependency of vars-ode: pip install pandas, "
                "or take to_rows() or to_csv(path), which hold the same"
            ) from error
        return pandas.DataFrame(self.to_rows())


def number(value: Any) -> float | None:
    """A tensor of one element as a float, NaN as None: what there is not leaves an empty cell."""
    value = float(value)
    return None if value != value else value
