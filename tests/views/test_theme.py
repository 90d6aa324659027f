"""Colours by role, readable on both grounds."""

from app.views import theme


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_bit_palettes_are_monotone_in_lightness():
    light = [luminance(colour) for colour in theme.LIGHT["bits"]]
    dark = [luminance(colour) for colour in theme.DARK["bits"]]
    assert light == sorted(light, reverse=True) and dark == sorted(dark)


def test_text_is_readable_on_its_ground():
    for ground in theme.GROUNDS.values():
        for role in ("ink", "muted", "accent", "second"):
            assert contrast(ground[role], ground["ground"]) >= 4.5


def test_roles_are_resolved_everywhere():
    figure = {"a": ["mbq:ink", {"b": "mbq:bits.3"}], "c": "mbq:bits", "d": "plain", "e": 3}
    done = theme.resolve(figure, "light")
    assert done["a"] == ["#17212b", {"b": "#081d58"}] and done["c"][0] == [0.0, "#eef8b3"]
    assert (done["d"], done["e"]) == ("plain", 3)
