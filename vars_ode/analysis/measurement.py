"""The base of all measurements: numbers that can be drawn, and exported as rows, as a data frame or as CSV."""

from __future__ import annotations

import csv
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


class Measurement(ABC):
    """The result of a measurement. Subclasses are frozen dataclasses of numbers, strings and tensors on the CPU."""

    @abstractmethod
    def plot(self) -> Figure:
        """A new figure, independent of pyplot: `figure.savefig("plot.png")`."""

    @abstractmethod
    def to_rows(self) -> list[dict[str, Any]]:
        """A dict of column -> value for each measured point, all with the same columns; None where undefined."""

    @abstractmethod
    def findings(self) -> list[str]:
        """The main results, in sentences."""

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows; returns the path."""
        path, rows = Path(path), self.to_rows()
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
        return path

    def to_dataframe(self) -> Any:
        """The rows as a `pandas.DataFrame`; an ImportError if pandas, which is not a dependency, is missing."""
        try:
            import pandas  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise ImportError(
                "to_dataframe needs pandas, which is not installed: pip install pandas, or use to_rows() or "
                "to_csv(path), which hold the same numbers"
            ) from error
        return pandas.DataFrame(self.to_rows())


def number(value: Any) -> float | None:
    """A tensor of one element as a float; NaN becomes None, an empty field in a CSV file."""
    value = float(value)
    return None if value != value else value
