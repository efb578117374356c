"""What an evaluation has found so far, for each example; and the file from which a killed one goes on."""

import dataclasses
import json
import os

import numpy as np

from keras_sat import files

STANDS, MISCLASSIFIED = 0, -1  # in `broken_by`; n > 0 is the n-th stage
PICTURES = 8  # adversarial examples kept of each attack, to look at


@dataclasses.dataclass
class Row:
    """One attack: which of its stages broke an example, and the margin of a wrong class that it came to."""

    broken_by: np.ndarray
    margin: np.ndarray
    stage: int = 0  # the stage at work
    done: int = 0  # examples that it has attacked
    seconds: float = 0.0
    reached: int = 0  # examples that a targeted attack led to their targets
    pictures: list = dataclasses.field(default_factory=list)  # (index, clean, adversarial, predicted class)

    def standing(self):
        return self.broken_by == STANDS


class State:
    """The examples of an evaluation (of its shard), in the dataset's order, and a `Row` for each attack.

    Args:
        path: of the file, or None to keep none.
        configuration: dict of plain values; a file of another configuration is refused.
    """

    def __init__(self, path, configuration):
        self.path, self.configuration = path and files.expanded(path), json.dumps(configuration, sort_keys=True)
        self.index = self.label = self.clean = self.margin = None
        self.seconds, self.rows = 0.0, {}
        if path and os.path.exists(path):
            self._load()

    def add_examples(self, index, label, clean, margin):
        """Takes the result of the clean pass."""
        self.index, self.label, self.clean, self.margin = index, label, clean, margin

    def row(self, name, on_all=False):
        """Returns the row of an attack, new if it has not begun: on the correctly classified examples, or on all."""
        if name not in self.rows:
            broken_by = np.where(self.clean | on_all, STANDS, MISCLASSIFIED).astype(np.int8)
            self.rows[name] = Row(broken_by, self.margin.copy())
        return self.rows[name]

    def save(self):
        """Writes the file, beside and renamed."""
        if not self.path:
            return
        arrays = {name: getattr(self, name) for name in ("index", "label", "clean", "margin")}
        meta = {"configuration": self.configuration, "seconds": self.seconds, "rows": {}}
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
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.path} is not the state of an evaluation: {error}. Choose another file.") from error
        if meta["configuration"] != self.configuration:
            raise ValueError(
                f"{self.path} is the state of another evaluation: give this one a file of its own.\n"
                f"There: {meta['configuration']}\nHere:  {self.configuration}"
            )
        self.add_examples(*(arrays[name] for name in ("index", "label", "clean", "margin")))
        self.seconds = meta["seconds"]
        for number, (name, row) in enumerate(meta["rows"].items()):
            row["pictures"] = [
                (index, arrays[f"{number} clean {k}"], arrays[f"{number} adversarial {k}"], predicted)
                for k, (index, predicted) in enumerate(row["pictures"])
            ]
            self.rows[name] = Row(arrays[f"{number} broken_by"], arrays[f"{number} margin"], **row)
