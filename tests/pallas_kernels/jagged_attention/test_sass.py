from tests.pallas_kernels.jagged_attention import sass

LISTING = """
.text.kernel:
   -:-:-:Y:01        /*0000*/                   STL [R1], R5
.L_x_0:
   -:-:-:Y:01        /*0010*/                   LDL R5, [R1]
.L_x_1:
   -:-:-:Y:01        /*0020*/                   IADD3 R4, R4, 0x1, RZ
   -:-:-:Y:01        /*0030*/               @P0 BRA `(.L_x_1)
.L_x_2:
   1:-:-:Y:01        /*0040*/              @!P1 BRA `(.L_x_4)
.L_x_5:
   -:-:-:Y:01        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ
   -:-:-:Y:01        /*0060*/               @P2 BRA P3, `(.L_x_2)
   -:-:-:Y:01        /*0070*/              @!P0 BRA `(.L_x_0)
   -:-:-:Y:01        /*0080*/                   EXIT
   -:-:-:Y:01        /*0090*/                   USETMAXREG.DEALLOC.CTAPOOL 0x18
.L_x_3:
   -:-:-:Y:01        /*00a0*/                   LDL R7, [R1]
   -:-:-:Y:01        /*00b0*/               @P0 BRA `(.L_x_3)
.L_x_4:
   1:-:-:Y:01        /*00c0*/               @P1 BRA `(.L_x_5)
   -:-:-:Y:01        /*00d0*/                   BRA `(.L_x_4)
"""


def test_only_the_loop_with_a_matmul_inside_the_loop_over_items_is_one_over_steps():
    [loop] = sass.loops_over_steps(LISTING)
    assert len(loop) == 3 and "`(.L_x_4)" in loop[0] and "HGMMA" in loop[1] and "`(.L_x_2)" in loop[2]
