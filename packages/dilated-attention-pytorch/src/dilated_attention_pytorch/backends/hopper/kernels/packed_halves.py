"""Numbers in 16 bits that stay packed in pairs, where there are no registers for them in 32."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

PAIRS_BF16 = gl.constexpr("cvt.rn.bf16x2.f32 $0, $2, $1;")
PAIRS_FP16 = gl.constexpr("cvt.rn.f16x2.f32 $0, $2, $1;")
PRODUCT_BF16 = gl.constexpr("""{
    .reg .f32 a, b;
    shl.b32 a, $1, 16;
    and.b32 b, $1, 0xffff0000;
    mul.f32 a, a, $2;
    mul.f32 b, b, $3;
    cvt.rn.bf16x2.f32 $0, b, a;
}""")
PRODUCT_FP16 = gl.constexpr("""{
    .reg .b16 c, d;
    .reg .f32 a, b;
    mov.b32 {c, d}, $1;
    cvt.f32.f16 a, c;
    cvt.f32.f16 b, d;
    mul.f32 a, a, $2;
    mul.f32 b, b, $3;
    cvt.rn.f16x2.f32 $0, b, a;
}""")


@gluon.jit
def packed(x, dtype: gl.constexpr):
    """x in 16 bits, converted here: the compiler would do it later, and keep x in registers until then."""
    if dtype == gl.bfloat16:
        made = gl.inline_asm_elementwise(PAIRS_BF16, "=r,f,f", [x], dtype=gl.bfloat16, is_pure=False, pack=2)
    else:
        made = gl.inline_asm_elementwise(PAIRS_FP16, "=r,f,f", [x], dtype=gl.float16, is_pure=False, pack=2)
    return made


@gluon.jit
def packed_product(half, x, dtype: gl.constexpr):
    """half * x in 16 bits; `half` stays packed in pairs."""
    if dtype == gl.bfloat16:
        made = gl.inline_asm_elementwise(
            PRODUCT_BF16, "=r,r,f,f", [half, x], dtype=gl.bfloat16, is_pure=False, pack=2
        )
    else:
        made = gl.inline_asm_elementwise(
            PRODUCT_FP16, "=r,r,f,f", [half, x], dtype=gl.float16, is_pure=False, pack=2
        )
    return made
