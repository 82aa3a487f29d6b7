"""What lies on the way from the score to the input, and what is refused there."""

import pytest

import gbprewrite
from tests.small import model

LOOP = """s0 = Neg (x) {0} = Loop (n, c, s0) <body = b (int64 i, bool k, float[N] si) => (bool ko, float[N] so)
    {{ ko = Identity (k) so = Add (si, x) }}>"""
BODIES = {
    "loop": f"{LOOP.format('s')} y = Add (s, x)",
    "in a branch": f"""z = If (c) <then_branch = t () => (float[N] a) {{ {LOOP.format("a")} }},
        else_branch = e () => (float[N] b) {{ b = Neg (x) }}>
        y = Add (x, z)""",
    "in a branch of a branch": f"""z = If (c) <then_branch = t () => (float[N] a) {{
        a = If (c) <then_branch = u () => (float[N] d) {{ d = Relu (x) }},
        else_branch = w () => (float[N] f) {{ {LOOP.format("f")} }}> }},
        else_branch = e () => (float[N] b) {{ b = Neg (x) }}>
        y = Add (x, z)""",
}


@pytest.mark.parametrize("name", BODIES)
def test_what_a_body_takes_from_around_it_is_on_the_way(name: str) -> None:
    """Else the plain way beside it would give a map that leaves the body out, in silence."""
    source = model(f"g (float[N] x, int64 n, bool c) => (float[N] y) {{ {BODIES[name]} }}")
    with pytest.raises(gbprewrite.UnsupportedOperators, match="export the model unrolled") as refused:
        gbprewrite.convert(source, "gradient", "seed")
    assert [o.operator for o in refused.value.obstacles] == ["Loop"]
    assert [o.operator for o in gbprewrite.inspect(source).missing] == ["Loop"]


def test_a_body_off_the_way_is_left_alone() -> None:
    body = """z = If (c) <then_branch = t () => (float[N] a) { a = Relu (v) },
        else_branch = e () => (float[N] b) { b = Neg (v) }>
        r = Relu (x) y = Add (r, z)"""
    source = model(f"g (float[N] x, float[N] v, bool c) => (float[N] y) {{ {body} }}")
    built = gbprewrite.convert(source, "guided", "seed", inputs="x")
    assert "x_guided" in [o.name for o in built.graph.output]
