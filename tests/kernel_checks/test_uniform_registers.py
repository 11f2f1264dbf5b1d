"""The check of machine code that the offline tests rely on: it finds an address that only one branch computes."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from uniform_registers import ambiguous, functions

PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT"


def code(*lines: str) -> str:
    """SASS as cuobjdump prints it, 16 bytes an instruction."""
    body = "".join(f"        /*{16 * i:04x}*/                   {line} ;\n" for i, line in enumerate(lines))
    return f"\t\tFunction : kernel\n{body}"


def found(*lines: str) -> list[str]:
    (instructions,) = functions(code(*lines)).values()
    return ambiguous(instructions)


START = ("UMOV UR4, 0x400", "UMOV UR5, URZ", "UMOV UR6, URZ", "UMOV UR7, URZ")


def test_address_behind_a_branch_is_found() -> None:
    # the branch at 0x40 leads to the product at 0x70 without what 0x50 computes
    lines = (
        *START,
        "@!P0 BRA 0x70",
        "UIADD3 UR4, UR6, 0x2, URZ",
        "UIADD3 UR8, UR4, 0x2, URZ",
        PRODUCT,
        "EXIT",
    )
    assert [text.split(":")[0] for text in found(*lines)] == ["UR4"]


def test_address_that_nobody_computes_is_found() -> None:
    lines = (*START[1:], "UIADD3 UR4, UP0, UR4, 0x40, URZ", PRODUCT, "EXIT")
    assert ["-0x1" in text for text in found(*lines)] == [True]


def test_address_under_a_predicate_is_found() -> None:
    lines = (*START, "@P0 UIADD3 UR4, UR6, 0x2, URZ", PRODUCT, "EXIT")
    assert [text.split(":")[0] for text in found(*lines)] == ["UR4"]


def test_what_a_table_leads_to_is_looked_at() -> None:
    assert len(found("BRX R2 -0x10", "UMOV UR4, URZ", PRODUCT, "EXIT")) == 3
    assert found("BRX R2 -0x10", *START, PRODUCT, "EXIT") == []


def test_product_without_a_way_to_it_is_an_error() -> None:
    with pytest.raises(ValueError, match="no way was found to 1 products"):
        found("EXIT", *START, PRODUCT, "EXIT")


@pytest.mark.parametrize(
    "lines",
    [
        (*START, PRODUCT, "EXIT"),
        (*START, "@!P0 BRA 0x60", "UMOV UR8, URZ", PRODUCT, "EXIT"),
        # a place in a ring, which changes from turn to turn
        (
            *START, "UMOV UR9, URZ", "USGXT.U32 UR4, UR9, 0xe", PRODUCT, "UIADD3 UR9, UR9, 0x1, URZ", "@P0 BRA 0x50",
            "EXIT",
        ),
        # brought back from a vector register at the end of a turn
        (*START, PRODUCT, "UMOV UR4, 0x7", "R2UR UR4, R9", "@P0 BRA 0x40", "EXIT"),
        # what cannot be reached
        (*START, "BRA 0x60", "UMOV UR4, 0x1", PRODUCT, "EXIT"),
    ],
    ids=["straight", "branch_beside_it", "ring", "brought_back", "never_reached"],
)  # fmt: skip
def test_what_is_right_is_not_found(lines: tuple[str, ...]) -> None:
    assert found(*lines) == []


def test_operand_from_registers_has_one_address_only() -> None:
    # a in R24, so UR6 and UR7 hold the address of b, and UR4 and UR5 nothing
    assert (
        found(
            "UMOV UR6, URZ",
            "UMOV UR7, URZ",
            "HGMMA.64x64x16.F32.BF16 R56, R24, gdesc[UR4].tnspB, R56",
            "EXIT",
        )
        == []
    )
