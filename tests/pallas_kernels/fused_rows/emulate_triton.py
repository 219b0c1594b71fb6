"""The contract of the Triton backend in Triton's interpreter."""

from tests.pallas_kernels.jagged_attention import triton_emulator  # before anything imports Triton

from tests.pallas_kernels.fused_rows import cases  # isort: skip

if __name__ == "__main__":
    triton_emulator.emulate()
    for dtype in ("float32", "float16"):
        cases.check_rows(dtype, 21, 256, "triton")
        cases.check_rows(dtype, 9, 40, "triton")
        cases.check_mixed_keys(dtype, (11, 8, 2, 16, 3, 16), "triton")
        cases.check_mixed_keys(dtype, (3, 5, 1, 48, 2, 6), "triton")
