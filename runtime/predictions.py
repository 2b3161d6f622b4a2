"""What a model said of every sample, as a file: ``inarch.predictions/1``.

An ``.npz`` file, which numpy reads anywhere (``numpy.load(path)``, no pickles). N samples, in the task's order:

=================== =====================================================================================================
about               one string, a JSON object: ``format``; ``task``, ``headline`` and ``overall`` (metric -> value);
                    ``samples``, an object that says which samples these are, equal in files that can be compared;
                    ``model``, ``provider`` and ``inarch``, how they were made
predictions/NAME    [N, ...] what the model said, as the task reads its outputs: ``boxes``, ``answer``, ``scores``; ``margin``
                    is how far the first choice was ahead of the second
scores/METRIC       [N] how right that is, in [0, 1]
texts               [N] the expression, the question, or the image's name, where the task has one; else empty
=================== =====================================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inarch.runtime.accuracy import Evaluation
from inarch.runtime.npz import read_npz
from inarch.structure.errors import DataError
from inarch.structure.files import whole

FORMAT = "inarch.predictions/1"


@dataclass(frozen=True, eq=False)
class Predictions:
    """An evaluation, and what it is of.

    Attributes:
        evaluation: predictions and scores.
        samples: which samples they are of.
        texts: [N] what each is about; empty where the task cannot tell.
        made: how: model, provider, version.
    """

    evaluation: Evaluation
    samples: Mapping[str, Any]
    texts: Sequence[str] = ()
    made: Mapping[str, str] = field(default_factory=dict)


def save_predictions(found: Predictions, path: Path) -> None:
    """Write predictions, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    evaluation = found.evaluation
    about = {
        "format": FORMAT,
        "task": evaluation.task,
        "headline": evaluation.headline,
        "overall": dict(evaluation.overall),
        "samples": dict(found.samples),
        **found.made,
    }
    arrays: dict[str, Any] = {f"predictions/{name}": values for name, values in evaluation.predictions.items()}
    arrays |= {f"scores/{name}": values for name, values in evaluation.scores.items()}
    arrays |= {"about": np.asarray(json.dumps(about, sort_keys=True)), "texts": np.asarray(list(found.texts), np.str_)}
    try:
        with whole(path) as draft, draft.open("xb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", where=str(path)) from error


def load_predictions(path: Path) -> Predictions:
    """Read predictions.

    Raises:
        DataError: the file cannot be read, or is none of this format.
    """
    try:
        arrays = read_npz(path)
        about = json.loads(str(arrays["about"]))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("is no file of predictions", where=str(path), hint="inarch evaluate --predictions writes one") from error
    return _checked(about, arrays, str(path))


def _checked(about: Any, arrays: Mapping[str, Any], source: str) -> Predictions:
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else about
        raise DataError(f"has the format {found!r}, wanted {FORMAT!r}", where=source)
    wanted = {"task": str, "headline": str, "overall": dict, "samples": dict}
    wrong = next((key for key, kind in wanted.items() if not isinstance(about.get(key), kind)), None)
    if wrong is not None:
        raise DataError("is missing or of another type", where=f"{source}: about.{wrong}")
    parts = {
        kind: {name.removeprefix(f"{kind}/"): values for name, values in arrays.items() if name.startswith(f"{kind}/")}
        for kind in ("predictions", "scores")
    }
    lengths = {name: values.shape[:1] for name, values in arrays.items() if "/" in name}
    if not parts["scores"] or len(set(lengths.values())) != 1 or () in lengths.values():
        raise DataError(f"the arrays have lengths that do not fit: {lengths}", where=source)
    (count,) = next(iter(lengths.values()))
    if not count:
        raise DataError("holds no sample", where=source)
    for name, values in parts["scores"].items():
        if values.ndim != 1 or values.dtype.kind not in "fiu" or not ((values >= 0) & (values <= 1)).all():
            raise DataError("is no number from 0 to 1 for each sample", where=f"{source}: scores/{name}")
    margin = parts["predictions"].get("margin", np.zeros(count))
    if margin.ndim != 1 or margin.dtype.kind not in "fiu" or np.isnan(margin).any():
        raise DataError("is no number for each sample", where=f"{source}: predictions/margin")
    texts = tuple(str(text) for text in np.atleast_1d(arrays.get("texts", np.zeros(0, np.str_))))
    if len(texts) not in (0, count):
        raise DataError(f"there are {len(texts)} for {count} samples", where=f"{source}: texts")
    for name, value in about["overall"].items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError("is no number", where=f"{source}: about.overall.{name}")
    if about["headline"] not in about["overall"]:
        raise DataError(f"there is no {about['headline']!r}", where=f"{source}: about.overall")
    evaluation = Evaluation(about["task"], about["headline"], parts["predictions"], parts["scores"], about["overall"])
    made = {key: str(value) for key, value in about.items() if key not in (*wanted, "format")}
    return Predictions(evaluation, about["samples"], texts, made)
