"""Answers with units: by hand, with both orders of the two, and who agrees with whom."""

import pytest

from megatron_ring.curation.synthesis.agreement import Class
from megatron_ring.curation.synthesis.quantities import agree, compare, quantity


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ("5 m/s", "5", "right"),  # a unit missing in one
        ("5 m/s", "18 km/h", "right"),
        ("5 m/s", "5 meters per second", "right"),
        ("5 m/s", "5 m", "wrong"),
        ("5 m/s", "-5 m/s", "wrong"),
        ("5 mW", "5 MW", "wrong"),
        ("9.8\\,\\mathrm{m\\,s^{-2}}", "9.81 \\text{ m/s}^2", "right"),
        ("9.8 m/s²", "10 m/s²", "wrong"),
        ("2.5\\times10^{-3}~\\mathrm{mol\\,L^{-1}}", "2.5 mM", "right"),
        ("3.0 × 10⁸ m s⁻¹", "3e8 m/s", "right"),
        ("8.314 J/(mol·K)", "8.314 J/mol K", "right"),
        ("8.314 J/mol K", "8.314 J K/mol", "wrong"),
        ("12 rabbits", "12", "right"),
        ("12", "13", "wrong"),  # counts, however near
        ("1000", "1001", "wrong"),
        ("1000.0", "1001", "right"),
        ("100 V", "100.9 V", "right"),
        ("100 V", "101.1 V", "wrong"),
        ("25%", "0.25", "right"),
        ("25%", "25", "right"),
        ("25%", "2.5", "wrong"),
        ("30^\\circ", "30 degrees", "right"),
        ("30^{\\circ}", "0.5236 rad", "right"),
        ("25 °C", "25^\\circ C", "right"),
        ("25 °C", "25 K", "wrong"),
        ("v = 5 m/s", "\\boxed{5\\ \\text{m/s}}", "right"),
        ("\\approx 1{,}250 J", "1.25 kJ", "right"),
        ("\\frac{1}{2} kg", "500 g", "right"),
        ("10^{-3} m", "1 mm", "right"),
        ("10 µm", "10 \\mu m", "right"),
        ("10 micrometers", "1e-5 m", "right"),
        ("4.184 kJ", "1 kcal", "right"),
        ("1 eV", "1.602e-19 J", "right"),
        ("1 atm", "760 mmHg", "right"),
        ("10 cells/mL", "10 mL^{-1}", "right"),
        ("0", "0.0 N", "right"),
        ("4 Ω", "4 V/A", "right"),
        ("2 kWh", "7.2 MJ", "right"),
        ("B", "(B) 5 m", "right"),
        ("b", "C", "wrong"),
        ("2x", "2", "unknown"),
        ("3\\pi", "3", "unknown"),
        ("5 m/s at 30 degrees", "5 m/s", "unknown"),
        ("1/0", "2", "unknown"),
        ("x^2 y", "y x^2", "unknown"),
    ],
)
def test_two_answers(one: str, other: str, verdict: str) -> None:
    assert compare(one, other, 0.01) == verdict
    assert compare(other, one, 0.01) == verdict


def test_a_quantity_is_read_whole() -> None:
    found = quantity("-2.5 \\times 10^{3}~\\mathrm{kJ\\,mol^{-1}}")
    assert (found.number, found.scale) == (-2500.0, 1e3)
    assert found.dimensions == (("kg", 1), ("m", 2), ("mol", -1), ("s", -2))
    assert quantity("7").is_count and not quantity("7 kg").is_count and not quantity("7.0").is_count
    assert quantity("the cell wall") is None and quantity("") is None and quantity("m/s") is None


def never(one: str, other: str) -> str:
    raise AssertionError(f"{one} and {other} were asked about")


def test_votes_with_units() -> None:
    given = ["5 m/s", "5.02 m/s", "18 km/h", "5", "5 m", None, "40 m/s", "5 m/s"]
    found = agree(given, never, 0.01)
    assert found.classes == (
        Class("5 m/s", 5, (0, 1, 2, 3, 7)),
        Class("5 m", 1, (4,)),
        Class("40 m/s", 1, (6,)),
    )
    assert (found.without, found.timeouts) == (1, 0)
    assert found.agreed(5) == "5 m/s" and found.agreed(6) is None


def test_two_units_do_not_agree_through_a_number_without_one() -> None:
    found = agree(["5", "5", "5", "5 m", "5 s", "5 s"], never, 0.01)
    assert found.classes == (Class("5 s", 5, (0, 1, 2, 4, 5)), Class("5 m", 1, (3,)))


def test_what_is_no_quantity_is_asked_about() -> None:
    asked = []

    def same(one: str, other: str) -> str:
        asked.append({one, other})
        return "right" if "B" not in one + other else "wrong"

    found = agree(["mg/k", "\\frac{mg}{k}", "B", "(b)"], same, 0.01)
    assert [one.votes for one in found.classes] == [2, 2] and {"mg/k", "\\frac{mg}{k}"} in asked
