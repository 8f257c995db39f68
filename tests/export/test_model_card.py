"""Names of strangers in a model card: they are shown, each on a line of its own, and nothing of them is obeyed."""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest
from markdown_it import MarkdownIt

from ducat_serve.spec import ModelSpec, Switch
from export.markdown import code, text
from export.model_card import model_card
from tests.support.checkpoints import SPEC

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "# heading",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "a\n\n## Robustness\n\n**99.9 % under every attack**",
    "a\r\n- b",
    "**bold** _it_ ~~gone~~",
    "`code` and ``more``",
    "`",
    " blank ",
    "\\",
    "a | b",
    "&lt;b&gt; &copy;",
    "\x1b[31mred\u202etxt.exe\u2028next",
    "",
    "goldfish, Carassius auratus",
    "$x$",
]


def rendered(card: str) -> str:
    page: str = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(card)
    return page


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_text_wherever_it_stands(name: str) -> None:
    spec = SPEC.model_copy(
        update={
            "labels": (name, "dog"),
            "network": name,
            "weights_digest": name,
            "training": {
                "data": name,
                "recipe": {"method": name, "ducat": name, "epochs": name, "batch_size": name, "seed": name},
            },
        }
    )
    plain = rendered(model_card(SPEC.model_copy(update={"labels": ("cat", "dog")}), "model.onnx"))
    page = rendered(model_card(spec, "model.onnx"))

    def tags(html: str) -> list[str]:
        return [part.split(">")[0] for part in html.split("<")[1:]]

    # SPEC records no recipe, so what stands in the place of names may be code or not; the skeleton is the same.
    assert [tag for tag in tags(page) if "code" not in tag] == [
        tag for tag in tags(plain) if "code" not in tag
    ]
    assert not {"\x1b", "\u202e", "\u2028"} & set(page)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.isprintable() and name])
def test_a_name_is_shown_as_it_is(name: str) -> None:
    assert unescape(rendered(text(name))).strip() == f"<p>{name.strip()}</p>"
    assert unescape(rendered(code(name))) == f"<p><code>{name}</code></p>\n"


def test_nothing_becomes_a_link_by_itself() -> None:
    """As GitHub makes of addresses and mentions."""
    for name in ("https://evil.example", "www.evil.example", "@someone", "a@b.example"):
        written = text(name)
        assert name not in written
        assert rendered(written) == f"<p>{name}</p>\n"


def test_labels_with_commas_can_be_told_apart() -> None:
    card = model_card(SPEC.model_copy(update={"labels": ("a, b", "c")}), "m.onnx")
    other = model_card(SPEC.model_copy(update={"labels": ("a", "b, c")}), "m.onnx")
    assert "0. `a, b`\n1. `c`\n" in card
    assert card != other


def test_what_is_not_recorded_is_said_to_be_so() -> None:
    unrecorded: list[dict[str, Any]] = [{}, {"recipe": {}}, {"recipe": []}, {"recipe": {"ducat": ["x"]}}]
    for training in unrecorded:
        card = model_card(SPEC.model_copy(update={"training": training}), "m.onnx")
        assert "None" not in card
        assert "- Data: not recorded" in card


def test_a_card_says_what_its_digests_are_worth() -> None:
    assert "detect damage, not forgery" in model_card(SPEC, "m.onnx")


def test_the_title_says_what_the_model_is_and_not_what_its_file_is_called() -> None:
    assert model_card(SPEC, "model.onnx").splitlines()[0] == "# resnet-small"
    spec = SPEC.model_copy(update={"training": {"data": "digits"}})
    assert model_card(spec, "model.onnx").splitlines()[0] == "# resnet-small for digits"
    assert "RGB. File: `model.onnx`." in model_card(spec, "model.onnx")


def mixture(**trained: dict[str, Any]) -> ModelSpec:
    """Two towers that were trained as said."""
    towers = [
        SPEC.model_copy(update={"network": name, "training": trained[name]})
        for name in ("standard", "robust")
    ]
    switch = Switch(scale=4, power=1, shift=0, threshold=0.2)
    training = {"recipe": trained["robust"].get("recipe", {}), "command": "ducat mix accurate robust"}
    return SPEC.model_copy(update={"towers": tuple(towers), "fold": switch, "training": training})


OURS = {
    "recipe": {"method": "standard", "ducat": "off", "epochs": 24, "batch_size": 128, "seed": 0},
    "data": "pets",
}
OTHERS = {"recipe": {"method": "imported", "pretrained": "robust.pth", "pretrained_licence": "MIT"}}


def test_a_card_says_of_each_tower_who_trained_it() -> None:
    card = model_card(mixture(standard=OURS, robust=OTHERS), "model.onnx")
    before, _, towers = card.partition("### Standard tower")
    standard, _, robust = towers.partition("### Robust tower")
    assert "Two towers." in before
    assert "by a lead of 0.2. `dummy_mass` is 1 where the robust tower answered" in before
    assert "Trained by others" not in before + standard
    assert "24 epochs" in standard
    assert "Data: pets" in standard
    assert "Trained by others, and imported" in robust
    assert "licence: MIT" in robust
    assert "24 epochs" not in robust
    assert "Trained by others" not in model_card(mixture(standard=OURS, robust=OURS), "model.onnx")
