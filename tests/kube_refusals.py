"""What the Kubernetes API of the tests refuses, in the words and with the Status object of a real one."""

from typing import Any

from kube_resources import Resource


class Refused(Exception):
    """A request that is not carried out.

    Attributes:
        code: of the HTTP answer.
        status: the body of it.
    """

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": details or {},
            "code": code,
        }


def not_found(resource: Resource, name: str) -> Refused:
    """There is no such object."""
    return Refused(404, "NotFound", f'{resource.qualified} "{name}" not found', _details(resource, name))


def already_exists(resource: Resource, name: str) -> Refused:
    """There is such an object."""
    return Refused(409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', _details(resource, name))


def conflict(resource: Resource, name: str, why: str = "") -> Refused:
    """The object is another one by now than the client thinks."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return Refused(409, "Conflict", message, _details(resource, name))


def bad_request(message: str) -> Refused:
    """The request is no such object, or no request."""
    return Refused(400, "BadRequest", message)


def undecodable(resource: Resource, why: str) -> Refused:
    """The body is not an object of this kind."""
    return bad_request(f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {why}')


def invalid(resource: Resource, name: str, causes: list[tuple[str, str]]) -> Refused:
    """The object cannot be as it is; ``causes``: fields, and what is wrong with each."""
    told = [f"{field}: {why}" for field, why in causes]
    listed = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    details = _details(resource, name) | {
        "causes": [{"reason": "FieldValueInvalid", "field": field, "message": why} for field, why in causes]
    }
    return Refused(422, "Invalid", f'{resource.qualified_kind} "{name}" is invalid: {listed}', details)


def unauthorized() -> Refused:
    """Nobody knows who asks."""
    return Refused(401, "Unauthorized", "Unauthorized")


def forbidden(user: str, verb: str, resource: Resource, subresource: str, place: tuple[str, str]) -> Refused:
    """Who asks may not do that; ``place``: namespace and name, either of which may be empty."""
    namespace, name = place
    what = f"{resource.plural}/{subresource}" if subresource else resource.plural
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    named = f' "{name}"' if name else ""
    message = (
        f'{resource.qualified}{named} is forbidden: User "{user}" cannot {verb} resource "{what}" in API group '
        f'"{resource.group}" {where}'
    )
    return Refused(403, "Forbidden", message, _details(resource, name))


def expired() -> Refused:
    """A watch wants to begin before what is remembered."""
    return Refused(410, "Expired", "The resourceVersion for the provided watch is too old.")


def not_built(what: str) -> Refused:
    """This API of the tests does not do what a real one does: a test that needs it has to build it."""
    return Refused(501, "NotImplemented", f"the Kubernetes API of the tests does not know {what}")


def _details(resource: Resource, name: str) -> dict[str, Any]:
    return {"name": name, "group": resource.group, "kind": resource.plural}
