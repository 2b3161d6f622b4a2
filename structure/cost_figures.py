"""The timings that a cost table may carry: one site in several forms, each timed beside its dense form in the same rounds."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["ffn", "msa"]
Form = Literal["dense", "split", "inside", "width"]
Precision = Literal["fp32", "fp16"]

Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Place(NamedTuple):
    """What figures that may be compared have in common: one dense site, run on some tokens by some threads.

    Attributes:
        kind: ``ffn`` or ``msa``.
        width: length of the residual stream.
        units: units of the dense site: hidden units, or heads x units a head on both qk and vo.
        heads: heads; 1 for an FFN.
        tokens: length of the sequence; the batch is 1.
        threads: intra-op threads; 0 where the provider has none to choose.
    """

    kind: Kind
    width: int
    units: int
    heads: int
    tokens: int
    threads: int


class Figure(BaseModel):
    """One form of one site, timed.

    Attributes:
        kind, width, units, heads, tokens, threads: the place, see :class:`Place`.
        form: ``dense``; ``split``: an FFN in blocks of units, an MSA in groups of heads; ``inside``: every head in blocks;
            ``width``: one block, narrower than dense.
        stored: units that this form stores, in all its blocks.
        blocks: blocks of a projection.
        rounds: how often it was timed; in every round each form of the place once.
        milliseconds: median of the rounds.
        spread: interquartile range over the median.
        ratio: median over rounds of its time over the dense form's in the same round.
        low, high: 95 % interval of that median.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    kind: Kind
    width: Count
    units: Count
    heads: Count
    tokens: Count
    threads: Annotated[int, Field(ge=0)]
    form: Form
    stored: Count
    blocks: Count
    rounds: Count
    milliseconds: Number
    spread: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    ratio: Number
    low: Number
    high: Number

    @property
    def place(self) -> Place:
        """What it may be compared within."""
        return Place(self.kind, self.width, self.units, self.heads, self.tokens, self.threads)


class Measured(BaseModel):
    """A measurement of kernels: on what, with what, how well.

    Attributes:
        provider: ONNX Runtime's execution provider.
        device: the processor's or graphics card's name.
        cores: processor cores that the process could use.
        system: operating system and architecture.
        onnxruntime: its version.
        inarch: the version that measured.
        precision: of weights and activations.
        date: year-month-day.
        seconds: how long it took.
        tight: whether every interval got as narrow as was wanted before the time was over.
        figures: the timings.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    provider: str
    device: str
    cores: Count
    system: str
    onnxruntime: str
    inarch: str
    precision: Precision
    date: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
    seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    tight: bool
    figures: tuple[Figure, ...]
