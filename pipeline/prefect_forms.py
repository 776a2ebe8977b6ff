"""Prefect's form for starting a run, as JSON schema: what each field means, and what it accepts.

- **The signature of the flow is the only source.** Prefect takes what a parameter means from docstrings alone, and
  shows no range: both are put into the descriptions here, from the parameter's own ``Field``.
- A parameter that a flow does not have is refused when the run is created: it would crash the run after its start.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from prefect.flows import Flow
from prefect.utilities.callables import ParameterSchema, parameter_schema
from pydantic.fields import FieldInfo

BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
}


class Form(ParameterSchema):
    """A flow's parameters as JSON schema, in which others are refused."""

    additionalProperties: Literal[False]  # noqa: N815 - JSON schema's name


def form(flow: Flow[..., Any]) -> Form:
    """The form of a flow."""
    schema = parameter_schema(flow).model_dump()
    meanings = _meanings(flow)
    properties = {name: {**field, **meanings.get(name, {})} for name, field in schema["properties"].items()}
    records = {name: record | {"properties": _told(record["properties"])} for name, record in _records(schema)}
    told = {"properties": _told(properties), "definitions": schema["definitions"] | records}
    # Said, and not left to a default: what is only a default never reaches the server.
    return Form(**schema | told, additionalProperties=False)


def bounds(field: Mapping[str, Any]) -> str:
    """What numbers a field accepts, in words; empty where it accepts all, or none."""
    for kind in (field, *field.get("anyOf", ())):
        said = [words.format(_plain(kind[bound])) for bound, words in BOUNDS.items() if bound in kind]
        if said:
            return ", ".join(said)
    return ""


def _meanings(flow: Flow[..., Any]) -> dict[str, dict[str, str]]:
    """What the signature says of each parameter."""
    found = {}
    for name, hint in get_type_hints(flow.fn, include_extras=True).items():
        said = [each.description for each in _fields(hint) if each.description]
        if said:
            found[name] = {"description": said[-1]}
    return found


def _fields(hint: Any) -> Iterator[FieldInfo]:
    if get_origin(hint) is Annotated:
        yield from (each for each in get_args(hint)[1:] if isinstance(each, FieldInfo))


def _records(schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records among the parameters' types, by name."""
    return ((name, record) for name, record in schema["definitions"].items() if "properties" in record)


def _told(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields whose descriptions name their bounds."""
    return {name: {**field, **_described(field)} for name, field in fields.items()}


def _described(field: Mapping[str, Any]) -> dict[str, str]:
    said = bounds(field)
    meaning = field.get("description", "")
    if not said:
        return {"description": meaning} if meaning else {}
    return {"description": f"{meaning} ({said[:1].upper()}{said[1:]}.)".strip()}


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
