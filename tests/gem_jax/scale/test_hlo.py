"""Reading collectives from compiled text, as CPU and GPU compilers write it."""

import pytest

from gem_jax.scale.hlo import Collective, collectives, total_received

MESH = {"replica": 2, "shard": 4}


def one(line: str, mesh=MESH) -> Collective:
    (found,) = collectives(line, mesh)
    return found


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("mesh['replica'=2,'shard'=4] {'shard'}", ("shard",)),
        ("mesh['replica'=2,'shard'=4] {'replica','shard'}", ("replica", "shard")),
        ("{{0,1,2,3},{4,5,6,7}}", ("shard",)),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("replica",)),
        ("[2,4]<=[8]", ("shard",)),
        ("[4,2]<=[2,4]T(1,0)", ("replica",)),
        ("[1,8]<=[8]", ("replica", "shard")),
    ],
)
def test_groups_are_axes(groups, axes):
    line = f"%x = f32[1024]{{0}} all-gather(%y), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    assert one(line).axes == axes


@pytest.mark.parametrize(
    ("result", "kind", "result_bytes", "received"),
    [
        ("f32[64,2]{1,0}", "all-gather", 512, 512 * 3 // 4),
        ("bf16[128]{0}", "reduce-scatter", 256, 256 * 3),
        ("(f32[64]{0}, f32[64]{0})", "all-reduce", 512, 2 * 512 * 3 // 4),
        ("(s32[1,8]{1,0}, s32[1,8]{1,0})", "all-to-all", 64, 48),
        ("f8e4m3fn[100]{0}", "ragged-all-to-all", 100, 75),
        ("(f32[16]{0}, f32[64]{0})", "all-gather-start", 256, 192),
        ("f32[64]{0}", "all-reduce-start", 256, 384),
        ("(f32[64]{0}, f32[64]{0})", "all-reduce-start", 512, 768),
        ("((f32[64]{0}), f32[64]{0})", "all-reduce-start", 256, 384),
        ("((f32[128]{0}), f32[32]{0})", "reduce-scatter-start", 128, 384),
        ("pred[]", "all-reduce", 1, 1),
    ],
)
def test_bytes(result, kind, result_bytes, received):
    found = one(f"  %x.1 = {result} {kind}(%a, %b), replica_groups=[2,4]<=[8], to_apply=%add")
    assert (found.result_bytes, found.received_bytes) == (result_bytes, received)
    assert found.kind == kind.removesuffix("-start")


def test_what_is_no_collective_or_stays_on_a_device_is_left_out():
    text = """
      %a = f32[8]{0} all-gather-done(%b)
      %c = f32[8]{0} fusion(%all-gather.1), kind=kLoop
      %d = f32[8]{0} all-gather(%e), replica_groups=[8,1]<=[8], dimensions={0}
    """
    assert collectives(text, MESH) == []


def test_fallbacks_are_told_apart_and_not_added():
    usual = '%x = f32[8]{0} all-gather(%y), replica_groups=[2,4]<=[8], metadata={op_name="jit(s)/cond/branch_1_fun/all_gather"}'
    rare = usual.replace("branch_1", "branch_0").replace("f32[8]", "f32[80]")
    found = collectives(usual + "\n" + rare, MESH)
    assert [c.is_fallback for c in found] == [False, True]
    assert total_received(found) == 24 and total_received(found, "all-gather", ("replica",)) == 0


def test_devices_along_no_axis_are_an_error():
    with pytest.raises(ValueError, match=r"a collective over devices \[0, 5\] runs along no axes"):
        one("%x = f32[8]{0} all-reduce(%y), replica_groups={{0,5},{1,4}}, to_apply=%add")
