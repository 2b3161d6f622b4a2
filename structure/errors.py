"""Every refusal that inarch makes on purpose.

A refusal names the place (a JSON path, a node, a file) and says what to do. The command line prints it without a
traceback and exits with 2; anything else that escapes is a defect of inarch.
"""

from __future__ import annotations

from typing import ClassVar


class InarchError(Exception):
    """Base of all refusals.

    Args:
        message: what is wrong, in one sentence.
        where: the place: a JSON path, a node or value name, a file.
        hint: what the user can do about it.
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.where = where
        self.hint = hint
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text} ({hint})" if hint else text)


class PlanError(InarchError):
    """The plan is malformed, or contradicts itself or the model; ``where`` is a JSON path.

    Args:
        message: what is wrong, in one sentence.
        where: the JSON path, e.g. ``sites["text.layer.3.ffn"].axes.hidden.share[0].base_units``; None for the plan as a whole.
        hint: what the user can do about it.
        source: the file that the plan came from; the error's text begins with it.

    Attributes:
        code: the kind of the mistake, stable and machine-readable; one a subclass.
    """

    code: ClassVar[str] = "plan"

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None, source: str | None = None) -> None:
        super().__init__(message, where=where, hint=hint)
        self.source = source
        if source is not None:
            self.args = (f"{source}: {self.args[0]}",)


class ModelError(InarchError):
    """The model file cannot be read, or is not a valid model."""


class DataError(InarchError):
    """A data set's file cannot be read, or does not hold what its format says; ``where`` is the file and the place in it."""


class BindingError(InarchError):
    """A plan's site cannot be bound to exactly one site of the model."""


class LoweringError(InarchError):
    """A plan asks for something that cannot be expressed on this model."""


class PassError(InarchError):
    """A pass could not be applied, or left an invalid model behind; ``where`` names the pass and the node."""


class RuntimeFailure(InarchError):
    """ONNX Runtime is missing, too old, or refused a model."""


class PlanFileError(PlanError):
    """The plan's file cannot be read or written."""

    code = "file"


class PlanSyntaxError(PlanError):
    """The text is not strict JSON: not UTF-8, cut off, followed by something, or holding NaN."""

    code = "syntax"


class DuplicateKeyError(PlanSyntaxError):
    """An object of the plan has one key twice."""

    code = "duplicate-key"


class PlanFormatError(PlanError):
    """The document is no plan, or a plan of another version of the format."""

    code = "format"


class UnknownKeyError(PlanError):
    """A key that the format does not have."""

    code = "unknown-key"


class MissingKeyError(PlanError):
    """A key that the format requires is missing."""

    code = "missing-key"


class WrongTypeError(PlanError):
    """A value of another JSON type than the format has there."""

    code = "wrong-type"


class InvalidValueError(PlanError):
    """A value of the right type that the format does not allow there."""

    code = "invalid-value"


class InvalidRangeError(PlanError):
    """A string that is not a range string."""

    code = "invalid-range"


class UnitOutOfRangeError(PlanError):
    """A unit that its axis does not have."""

    code = "unit-out-of-range"


class PrunedAndSharedError(PlanError):
    """A unit both pruned and shared."""

    code = "pruned-and-shared"


class SharedTwiceError(PlanError):
    """A unit that would have two bases."""

    code = "shared-twice"


class CyclicSharingError(PlanError):
    """Units that are shared with one another in a circle, so that no root is left."""

    code = "cyclic-sharing"


class PrunedBaseError(PlanError):
    """A unit shared with a unit that is pruned."""

    code = "pruned-base"


class BaseTakenTwiceError(PlanError):
    """Two units of one site that end at one root."""

    code = "base-taken-twice"


class PairingLengthError(PlanError):
    """``units`` and ``base_units`` of different lengths."""

    code = "pairing-length"


class KindMismatchError(PlanError):
    """Sharing between axes of different kinds."""

    code = "kind-mismatch"


class WidthMismatchError(PlanError):
    """Sharing between weight vectors of different lengths."""

    code = "width-mismatch"


class FrozenAxisError(PlanError):
    """A change to an axis that the model freezes."""

    code = "frozen-axis"


class StaleFingerprintError(PlanError):
    """The plan was made for another model."""

    code = "stale-fingerprint"


class UnknownSiteError(PlanError, BindingError):
    """A site that neither the plan nor the model has."""

    code = "unknown-site"


class AmbiguousSiteError(PlanError, BindingError):
    """A plan's site that fits several sites of the model."""

    code = "ambiguous-site"


class SiteMismatchError(PlanError, BindingError):
    """A plan's site whose namesake in the model has another kind or other sizes."""

    code = "site-mismatch"


class RejectedSiteError(UnknownSiteError):
    """A site that the model has, and that cannot be compiled."""

    code = "rejected-site"
