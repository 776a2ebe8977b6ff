"""The champion alias in one deployment: moved to a version, looked at meanwhile, and taken back where that one fails.

- It moves by compare and swap: from where it was when the deployment began, or not at all.
- **A version that fails is taken off the alias**, only if it is still there. One that had proven itself before, and
  that this deployment did not put there, is left alone: the fault is then in the surroundings, and a wrong URL must not
  take a good model away from every other server. ``deployment.json`` beside the model remembers.
"""

from pathlib import PurePosixPath

from pipeline import aliases
from pipeline.aliases import CHAMPION, AliasState
from pipeline.artifacts import Deployment
from pipeline.errors import Conflict, DeployFailed, StoreError
from pipeline.proof import PREDICTIONS
from pipeline.registry import ModelManifest
from pipeline.store import Store

Alias = tuple[AliasState, str] | None
"""What an alias says, and its etag; None where there is none yet."""
PROOF = "deployment.json"


class AliasMove:
    """The alias on its way to a version.

    Args:
        models: the models zone.
        manifest: of the version.
        before: what the alias said when the deployment began.

    Attributes:
        stood: whether it pointed at the version then already.
    """

    def __init__(self, models: Store, manifest: ModelManifest, before: Alias) -> None:
        self.stood = before is not None and before[0].version == manifest.version
        self._models = models
        self._manifest = manifest
        self._before = before
        self._moved: bool | None = False if self.stood else None

    @property
    def generation_before(self) -> int:
        """Of the alias when the deployment began; 0 where there was none."""
        return self._before[0].generation if self._before else 0

    @property
    def proven(self) -> bool:
        """Whether the version has proven itself in an earlier deployment."""
        return self._models.head(_proof_key(self._manifest)) is not None

    def point(self) -> None:
        """Make the alias point at the version.

        Raises:
            Conflict: it points elsewhere than before, and not at the version either.
        """
        if self.stood:
            return
        model, version = self._manifest.model, self._manifest.version
        etag = self._before[1] if self._before else None
        try:
            aliases.set_alias(self._models, model, CHAMPION, version, reason="deployed", expected=etag)
            self._moved = True
        except Conflict:
            now = aliases.read_alias(self._models, model, CHAMPION)
            if now is None or now[0].version != version:
                raise
            self._moved = False  # somebody else is deploying the same version

    def move(self) -> int:
        """Make the alias point at the version; its generation then.

        Raises:
            Conflict: it points elsewhere than before, and not at the version either.
            DeployFailed: it pointed at the version for a moment only.
        """
        self.point()
        return self.refuse_moved()

    def refuse_moved(self) -> int:
        """The generation of the alias, which points at the version.

        Raises:
            DeployFailed: it points elsewhere.
        """
        found = aliases.read_alias(self._models, self._manifest.model, CHAMPION)
        if found is None or found[0].version != self._manifest.version:
            raise DeployFailed("somebody else moved the alias meanwhile")
        return found[0].generation

    def take_back(self, error: Exception) -> tuple[str, AliasState | None]:
        """Take the version off the alias unless it is known to be good; what happened, and what the alias says then.

        The latter is None where it was left as it is, or nobody knows.
        """
        if self._moved is None:
            return f"alias {CHAMPION!r} still points at {self._before[0].version if self._before else 'nothing'}", None
        if not self._moved and self.proven:
            return f"alias {CHAMPION!r} stays, because this version had proven itself before", None
        model, version = self._manifest.model, self._manifest.version
        try:
            state = aliases.withdraw(self._models, model, CHAMPION, version, f"deployment failed: {error}")
        except StoreError as lost:
            return f"and alias {CHAMPION!r} could not be moved back: {str(lost).rstrip('.')}", None
        taken_back = state is not None and state.history[-1].rolled_back == version
        now = (state.version if state else None) or "nothing"
        where = f"{now} {'again' if taken_back else 'by now, which somebody else decided'}"
        return f"alias {CHAMPION!r} points at {where}", state


def remember(models: Store, manifest: ModelManifest, done: Deployment) -> Deployment:
    """Store that a version has proven itself."""
    models.put(_proof_key(manifest), done.to_json())
    return done


def _proof_key(manifest: ModelManifest) -> str:
    """Beside the model's files."""
    return str(PurePosixPath(manifest.files[PREDICTIONS].key).with_name(PROOF))
