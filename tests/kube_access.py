"""Who asks the Kubernetes API of the tests, by a token, and what that one may do, by the Roles that were applied."""

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import kube_refusals
from kube_objects import Objects
from kube_refusals import Refused
from kube_resources import BY_KIND, Resource

ADMIN = "kubernetes-admin"


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants to do."""

    verb: str
    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def path(self) -> str:
        """The resource as rules name it."""
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural


@dataclass
class Access:
    """Tokens, and the check of every request; ``asked`` is who wanted what: user, verb, group and resource."""

    objects: Objects
    tokens: dict[str, str] = field(default_factory=dict)
    asked: set[tuple[str, str, str, str]] = field(default_factory=set)

    def token(self, user: str) -> str:
        """A token with which requests are those of a user; the same one each time."""
        found = next((token for token, owner in self.tokens.items() if owner == user), None)
        if found is None:
            found = secrets.token_urlsafe(24)
            self.tokens[found] = user
        return found

    def user(self, authorization: str) -> str:
        """Who asks.

        Raises:
            Refused: 401.
        """
        scheme, _, token = authorization.partition(" ")
        user = self.tokens.get(token.strip())
        if user is None or scheme.lower() != "bearer":
            raise kube_refusals.unauthorized()
        return user

    def refuse(self, user: str, request: Request) -> None:
        """Raise Refused (403) where no Role lets the user do that."""
        self.asked.add((user, request.verb, request.resource.group, request.path))
        if not self.allows(user, request):
            place = (request.namespace, request.name)
            raise kube_refusals.forbidden(user, request.verb, request.resource, request.subresource, place)

    def allows(self, user: str, request: Request) -> bool:
        """Whether a Role lets the user do that."""
        return user == ADMIN or any(_covers(rule, request) for rule in self._rules(user, request.namespace))

    def _rules(self, user: str, namespace: str) -> Iterator[dict[str, Any]]:
        for kind, place in (("ClusterRoleBinding", ""), ("RoleBinding", namespace)):
            if kind == "RoleBinding" and not namespace:
                continue
            for binding in self.objects.select(BY_KIND[kind], place):
                if any(_is(subject, user) for subject in binding.get("subjects", ())):
                    yield from self._of_role(binding["roleRef"], place)

    def _of_role(self, reference: dict[str, str], namespace: str) -> Iterable[dict[str, Any]]:
        place = "" if reference["kind"] == "ClusterRole" else namespace
        try:
            return self.objects.get(BY_KIND[reference["kind"]], place, reference["name"]).get("rules") or ()
        except Refused:
            return ()  # a binding to a role that is not there grants nothing


def account(namespace: str, name: str) -> str:
    """The user that a ServiceAccount is."""
    return f"system:serviceaccount:{namespace}:{name}"


def _is(subject: dict[str, str], user: str) -> bool:
    if subject["kind"] == "ServiceAccount":
        return account(subject.get("namespace", ""), subject["name"]) == user
    if subject["kind"] == "Group":
        parts = user.split(":")
        groups = {"system:authenticated"}
        if len(parts) == 4:
            groups |= {"system:serviceaccounts", f"system:serviceaccounts:{parts[2]}"}
        return subject["name"] in groups
    return subject["name"] == user


def _covers(rule: dict[str, Any], request: Request) -> bool:
    def among(name: str, wanted: str) -> bool:
        listed = rule.get(name) or ()
        return "*" in listed or wanted in listed

    names = rule.get("resourceNames")
    return (
        among("verbs", request.verb)
        and among("apiGroups", request.resource.group)
        and among("resources", request.path)
        and (not names or (bool(request.name) and request.name in names))
    )
