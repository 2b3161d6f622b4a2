"""From timings to limits: on machines that are made up, so that what should come out is known."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from inarch.structure.cost import DEFAULT_COST, cost_hash, parse_cost
from inarch.structure.cost_derive import BUDGET, derive, findings
from inarch.structure.cost_figures import Figure, Form, Kind, Measured


@dataclass(frozen=True)
class Machine:
    """Time of a site: its units, plus what each further block costs, plus what a width off a multiple costs.

    Attributes:
        block: units that are computed in the time of one further block.
        multiple: widths off multiples of this are slow.
        slow: fraction of the time that they lose.
        noise: half width of every interval.
    """

    block: float
    multiple: int = 1
    slow: float = 0.0
    noise: float = 0.0

    def figures(self, kind: Kind = "ffn", width: int = 768, units: int = 3072, heads: int = 1, threads: int = 1) -> list[Figure]:
        def time(stored: int, blocks: int) -> float:
            return (stored + self.block * (blocks - 1)) * (1 + self.slow * bool(stored % self.multiple))

        def figure(form: Form, stored: int, blocks: int = 1) -> Figure:
            milliseconds = time(stored, blocks) * width / 1e6
            ratio = time(stored, blocks) / time(units, 1)
            return Figure(
                kind=kind,
                width=width,
                units=units,
                heads=heads,
                tokens=128,
                threads=threads,
                form=form,
                stored=stored,
                blocks=blocks,
                rounds=15,
                milliseconds=milliseconds,
                spread=0.0,
                ratio=ratio,
                low=ratio - self.noise,
                high=ratio + self.noise,
            )

        low = units // 2
        widths = [low, *(low + m for m in (1, 2, 4, 8, 16, 32)), low + 64]
        splits = [figure("split", units, n) for n in (2, 3, 4, 6, 8)]
        return [figure("dense", units), *splits, *(figure("width", stored) for stored in widths)]


def measured(figures: list[Figure]) -> Measured:
    return Measured(
        provider="CPUExecutionProvider",
        device="a machine",
        cores=2,
        system="Linux x86_64",
        onnxruntime="1.32.0",
        inarch="0.1.0",
        precision="fp32",
        date="2026-11-26",
        seconds=1.0,
        tight=True,
        figures=tuple(figures),
    )


def test_the_timings_of_the_reference_give_the_shipped_multiple_and_segments() -> None:
    # A further block costs 1 % of an FFN of 3072 units; off multiples of 16 3 % are lost.
    table = derive(measured(Machine(block=30.7, multiple=16, slow=0.03).figures()))
    assert table.balanced.multiple == DEFAULT_COST.balanced.multiple
    assert table.balanced.min_segment == DEFAULT_COST.balanced.min_segment
    assert table.balanced.max_segments == 2 + int(BUDGET[None] * 100) - 1  # 1 % a block beyond the first
    assert table.size.max_segments == DEFAULT_COST.size.max_segments
    assert table.latency.max_segments == DEFAULT_COST.latency.max_segments
    assert table.latency.min_segment == DEFAULT_COST.latency.min_segment


def test_what_is_found_is_what_the_machine_does() -> None:
    found = findings(Machine(block=30.72, multiple=16, slow=0.03).figures())
    assert found.block_units == pytest.approx(30.72)
    assert found.slower[4] == pytest.approx(1.03)
    assert found.lost == pytest.approx({1: 0.03, 2: 0.03, 4: 0.03, 8: 0.03, 16: 0.0, 32: 0.0, 64: 0.0})


def test_a_machine_that_does_not_mind_gets_no_rounding() -> None:
    table = derive(measured(Machine(block=30).figures()))
    assert (table.balanced.multiple, table.balanced.rounding) == (1, 0.0)
    assert table.size.min_segment <= table.balanced.min_segment <= table.latency.min_segment


def test_kernels_that_cost_much_make_segments_few_and_wide() -> None:
    table = derive(measured(Machine(block=400, multiple=8, slow=1.0).figures()))
    assert table.balanced.max_segments == table.latency.max_segments == 2
    assert table.balanced.min_segment == 512
    assert table.latency.min_segment == 2048
    # Twice the time off a multiple of 8: even the smallest file keeps to it.
    assert table.size.multiple == table.balanced.multiple == 8


def test_the_worst_thread_count_counts() -> None:
    cheap, dear = Machine(block=10), Machine(block=100)
    one, two = cheap.figures(threads=1), dear.figures(threads=2)
    assert derive(measured(one + two)).balanced == derive(measured(two)).balanced != derive(measured(one)).balanced


def test_sites_are_weighed_by_their_time() -> None:
    large = Machine(block=0).figures(width=768)
    small = Machine(block=300).figures(width=8, units=256)
    found = findings(large + small)
    assert 1 < found.slower[2] < 1.02


def test_an_msa_is_half_in_groups_of_heads_and_half_inside_its_heads() -> None:
    figures = Machine(block=1).figures("msa", 768, 768, 12)
    inside = next(f for f in figures if f.form == "split" and f.blocks == 4).model_copy(update={"form": "inside", "ratio": 1.3})
    by_heads = findings(figures).slower[4]
    assert findings([*figures, inside]).slower[4] == pytest.approx((1.3 + by_heads) / 2)


def test_noise_is_no_reason_to_store_more() -> None:
    assert derive(measured(Machine(block=30, multiple=16, slow=0.01, noise=0.01).figures())).latency.multiple == 1


def test_timings_without_a_dense_form_or_a_split_one_are_refused() -> None:
    figures = Machine(block=1).figures()
    with pytest.raises(ValueError, match="lacks its dense form"):
        findings(figures[1:])
    with pytest.raises(ValueError, match="split"):
        findings([f for f in figures if f.form != "split"])


def test_the_timings_travel_with_the_table_and_take_no_part_in_its_hash() -> None:
    table = derive(measured(Machine(block=30).figures()))
    again = parse_cost(table.model_dump_json(exclude_none=True))
    assert again == table
    assert again.measured is not None
    assert cost_hash(again) == cost_hash(table.model_copy(update={"measured": None, "description": "none"}))
