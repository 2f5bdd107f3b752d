"""The JSON schema that caption writers are held to, made from the models of a caption's parts.

It is stricter than what `check` allows: what a reader may meet, a writer need not write. Keys stand in their order,
nothing is null, a style has a photo or an art style, and with a layout every element has its box.
"""

from __future__ import annotations

from typing import Any

from ..caption import Caption

MOST_ELEMENTS = 30
# Characters of a text, by its key: an end for models that find none.
LENGTHS = {"high_level_description": 400, "background": 600, "desc": 600, "text": 120}
LENGTH = 160
_REMARKS = ("title", "description", "default", "discriminator", "oneOf")


def caption_schema(layout: bool = True) -> dict[str, Any]:
    """The schema as plain JSON data without references, which any server reads.

    Args:
        layout: Whether the caption has a style, boxes and palettes. False for the smaller one that diffusers' prompt
            enhancer fills: a description of the whole, the background, and elements in words.
    """
    whole = Caption.model_json_schema()
    schema: dict[str, Any] = _plain(whole, whole.get("$defs", {}))
    properties = schema["properties"]
    elements = properties["compositional_deconstruction"]["properties"]["elements"]
    elements |= {"minItems": 1}
    for element in elements["items"]["anyOf"]:
        if layout:
            element["required"] = [key for key in element["properties"] if key != "color_palette"]
        else:
            for key in ("bbox", "color_palette"):
                del element["properties"][key]
    if layout:
        elements["maxItems"] = MOST_ELEMENTS
        properties["style_description"] = _either(properties["style_description"], ("photo", "art_style"))
    else:
        del properties["style_description"]
    schema["required"] = list(properties)
    _limit(schema, "")
    return schema


def _limit(node: Any, key: str) -> None:
    """Give every free text its greatest length."""
    if isinstance(node, list):
        for one in node:
            _limit(one, key)
    elif isinstance(node, dict) and node.get("type") == "string" and "pattern" not in node and "const" not in node:
        node["maxLength"] = LENGTHS.get(key, LENGTH)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name == "properties":
                for inner, child in value.items():
                    _limit(child, inner)
            elif name in ("items", "anyOf"):
                _limit(value, key)


def _plain(node: Any, definitions: dict[str, Any]) -> Any:
    """A node with its references put in, without remarks and without null as a choice."""
    if isinstance(node, list):
        return [_plain(one, definitions) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _plain(definitions[node["$ref"].rpartition("/")[2]], definitions)
    listed: list[Any] = node.get("anyOf") or node.get("oneOf") or []
    choices = [one for one in listed if one != {"type": "null"}]
    if "anyOf" in node and len(choices) == 1:
        return _plain(choices[0], definitions)
    if "properties" not in node and len(choices) > 1:
        return {"anyOf": _plain(choices, definitions)}
    if "properties" in node:
        properties = {key: _plain(value, definitions) for key, value in node["properties"].items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(node.get("required", properties)),
            "additionalProperties": False,
        }
    if "prefixItems" in node:  # a box: not every server knows lists whose places differ
        return {"type": "array", "items": _plain(node["prefixItems"][0], definitions), "minItems": 4, "maxItems": 4}
    return {key: _plain(value, definitions) for key, value in node.items() if key not in (*_REMARKS, "$defs")}


def _either(node: dict[str, Any], kinds: tuple[str, str]) -> dict[str, Any]:
    """An object with exactly one of two keys, as a choice of two objects."""
    choices = []
    for left_out in reversed(kinds):
        properties = {key: value for key, value in node["properties"].items() if key != left_out}
        required = [key for key in properties if key != "color_palette"]
        choices.append({**node, "properties": properties, "required": required})
    return {"anyOf": choices}
