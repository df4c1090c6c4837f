"""The API's own page: what its OpenAPI description says, as plain HTML without scripts or network."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def api_page(openapi: dict[str, Any]) -> str:
    """A page that lists the calls of an OpenAPI description with their parameters, bodies and answers."""
    environment = Environment(
        loader=PackageLoader("ct2mri.viewer", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    calls = [
        {
            "method": method.upper(),
            "path": path,
            "words": operation.get("description", operation["summary"]),
            "parameters": [
                {
                    "name": parameter["name"],
                    "place": parameter["in"],
                    "required": parameter.get("required", False),
                    "kind": _kind(parameter["schema"]),
                }
                for parameter in operation.get("parameters", [])
            ],
            "body": _content(operation.get("requestBody", {})),
            "answers": [
                {"status": status, "content": _content(answer)}
                for status, answer in operation["responses"].items()
                if status.startswith("2")
            ],
        }
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    schemas = [
        {
            "name": name,
            "words": schema.get("description", ""),
            "fields": [
                {
                    "name": field,
                    "kind": _kind(described),
                    "words": described.get("description", ""),
                    "required": field in schema.get("required", []),
                }
                for field, described in schema.get("properties", {}).items()
            ],
        }
        for name, schema in openapi["components"]["schemas"].items()
        if schema.get("type") == "object" and not name.startswith(("HTTPValidation", "Validation"))
    ]
    return environment.get_template("api.html.j2").render(
        title=openapi["info"]["title"],
        version=openapi["info"]["version"],
        words=openapi["info"]["description"],
        calls=calls,
        schemas=schemas,
    )


def _content(described: dict[str, Any]) -> str:
    """What a body or an answer is."""
    found = [
        _kind(content["schema"]) if content.get("schema") else kind
        for kind, content in described.get("content", {}).items()
    ]
    return " or ".join(found)


def _kind(schema: dict[str, Any]) -> str:
    """A schema in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    kind = str(schema.get("type", "anything"))
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{kind}, {low} to {high}"
    return "bytes" if schema.get("format") == "binary" else kind
