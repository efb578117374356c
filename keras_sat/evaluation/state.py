"""The results of an evaluation so far, for each example, and the file from which a killed evaluation continues."""

import dataclasses
import json
import os
from typing import Any

import numpy as np

from keras_sat import files
from keras_sat.evaluation import identity
from keras_sat.typing import Path

ROBUST, MISCLASSIFIED = 0, -1  # values of `Row.broken_by`; n > 0: broken by the n-th stage
_COLUMNS = ("index", "label", "digest", "clean", "margin")
PICTURES = 8  # number of adversarial examples of each attack that are stored as pictures


@dataclasses.dataclass
class Row:
    """The results of one attack.

    Attributes:
        broken_by: int8 [examples]: ROBUST; MISCLASSIFIED (without an attack); or the number, >= 1, of the stage that
            broke the example.
        margin: float32 [examples]: the largest margin of a wrong class so far; NaN if a logit is not finite.
        stage: number, >= 0, of the stage that runs now.
        done: number of examples that this stage has attacked.
        seconds: wall-clock time so far.
        reached: number of examples that a targeted attack moved to their target class.
        pictures: some adversarial examples, as (index, image, adversarial image, predicted class).
    """

    broken_by: np.ndarray
    margin: np.ndarray
    stage: int = 0
    done: int = 0
    seconds: float = 0.0
    reached: int = 0
    pictures: list = dataclasses.field(default_factory=list)

    def robust(self) -> np.ndarray:
        """Returns which examples are robust so far, bool [examples]."""
        return self.broken_by == ROBUST


class State:
    """The examples of an evaluation (or of its shard), in the dataset's order, and a `Row` for each attack.

    Args:
        path: the file of the state, or None for no file. If it exists, the state is read from it.
        configuration: a dict of all settings on which the results depend, as plain values.

    Raises:
        ValueError: for a file of another configuration, or one that is not the state of an evaluation.

    Attributes:
        index, label, digest, clean, margin: arrays [examples], see `add_examples`; None before the clean pass.
        seconds: wall-clock time of the clean pass.
        rows: {name of an attack: its `Row`}.
    """

    def __init__(self, path: Path | None, configuration: dict[str, Any]) -> None:
        self.path, self.configuration = path and files.expanded(path), json.dumps(configuration, sort_keys=True)
        self.index: Any = None
        self.label: Any = None
        self.digest: Any = None
        self.clean: Any = None
        self.margin: Any = None
        self.seconds = 0.0
        self.rows: dict[str, Row] = {}
        if self.path and os.path.exists(self.path):
            self._load()

    def add_examples(
        self, index: np.ndarray, label: np.ndarray, digest: np.ndarray, clean: np.ndarray, margin: np.ndarray
    ) -> None:
        """Stores the results of the clean pass, arrays [examples].

        Args:
            index: int, indices in the dataset.
            label: int, class numbers.
            digest: uint32, checksums of the images, see `examples.digests_of`.
            clean: bool, whether the clean image is classified correctly.
            margin: float32, the largest logit of a wrong class minus the logit of the label; NaN if a logit is not
                finite.
        """
        self.index, self.label, self.digest, self.clean, self.margin = index, label, digest, clean, margin

    def row(self, name: str, on_all: bool = False) -> Row:
        """Returns the row of an attack. It is created if the attack has not begun.

        Args:
            name: name of the attack.
            on_all: whether the attack runs on all examples, not only on the correctly classified ones.
        """
        if name not in self.rows:
            broken_by = np.where(self.clean | on_all, ROBUST, MISCLASSIFIED).astype(np.int8)
            self.rows[name] = Row(broken_by, self.margin.copy())
        return self.rows[name]

    def save(self) -> None:
        """Writes the file atomically, see `files.atomic_write`. Does nothing without a path."""
        if not self.path:
            return
        arrays = {name: getattr(self, name) for name in _COLUMNS}
        meta: dict[str, Any] = {"configuration": self.configuration, "seconds": self.seconds, "rows": {}}
        for number, (name, row) in enumerate(self.rows.items()):
            pictures = [(int(index), int(predicted)) for index, _, _, predicted in row.pictures]
            counts = {name: getattr(row, name) for name in ("stage", "done", "seconds", "reached")}
            meta["rows"][name] = {**counts, "pictures": pictures}
            arrays |= {f"{number} broken_by": row.broken_by, f"{number} margin": row.margin}
            for k, (_, clean, adversarial, _) in enumerate(row.pictures):
                arrays |= {f"{number} clean {k}": clean, f"{number} adversarial {k}": adversarial}
        with files.atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            np.savez(file, meta=json.dumps(meta), **arrays)

    def _load(self):
        try:
            with np.load(self.path) as loaded:
                arrays = dict(loaded)
            meta = json.loads(str(arrays["meta"]))
            columns = [arrays[name] for name in _COLUMNS]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.path} is not the state of an evaluation: {error}. Choose another file.") from error
        if not identity.are_alike(json.loads(meta["configuration"]), json.loads(self.configuration)):
            raise ValueError(
                f"{self.path} is the state of another evaluation: give this one a file of its own.\n"
                f"There: {meta['configuration']}\nHere:  {self.configuration}"
            )
        self.add_examples(*columns)
        self.seconds = meta["seconds"]
        for number, (name, row) in enumerate(meta["rows"].items()):
            row["pictures"] = [
                (index, arrays[f"{number} clean {k}"], arrays[f"{number} adversarial {k}"], predicted)
                for k, (index, predicted) in enumerate(row["pictures"])
            ]
            self.rows[name] = Row(arrays[f"{number} broken_by"], arrays[f"{number} margin"], **row)
