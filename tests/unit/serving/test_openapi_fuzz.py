"""Requests made from the OpenAPI document, good ones and bad ones: every answer is one that the document describes."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from live_server import MODEL
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import positive_data_acceptance

NOT_EXPRESSIBLE = [positive_data_acceptance]
"""A schema cannot say what an image is, or that one length is that of another part."""
OPERATIONS = 14
"""At least so many: none is left out because the document could not be read."""


@pytest.fixture(scope="module")
def operations(client: httpx.Client) -> list[APIOperation]:
    """What the document of a server lists, with what there is in place of any name."""
    version = client.get(f"/v2/models/{MODEL}").json()["version"]
    config = schemathesis.Config.from_dict({"parameters": {"path.name": MODEL, "path.version": version}})
    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json", config=config)
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.parametrize("mode", GenerationMode)
def test_the_document_tells_what_is_answered(operations: list[APIOperation], mode: GenerationMode) -> None:
    """Whatever is sent, the status, the media type and the body are those of the document, and never a 5xx."""
    assert len(operations) >= OPERATIONS
    asked = [each for each in operations if mode.is_positive or each.body]  # nothing is wrong with a fixed path
    for operation in asked:

        @settings(max_examples=8, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def answered(case: Case) -> None:
            case.call_and_validate(excluded_checks=NOT_EXPRESSIBLE, timeout=30)

        answered()
