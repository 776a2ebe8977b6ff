"""Settings from the environment: frozen, complete, built only in entry points and handed down from there.

Every setting is a ``SAFELIGHT_…`` variable; the secrets can also be given as ``…_FILE``, the path of a file
that holds the value. Where neither an endpoint nor a store URL is set, the embedded object store is used.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import PydanticCustomError

from pipeline.errors import InvalidSettings

PREFIX = "SAFELIGHT_"
SERVING_PREFIX = "SAFELIGHT_SERVING_"

Zone = Literal["images", "datasets", "checkpoints", "models", "predictions"]
ZONES: tuple[Zone, ...] = get_args(Zone)
LOCAL_RUNNERS = ("threads", "processes")
SECRETS = ("s3_access_key_id", "s3_secret_access_key", "uploads_token", "inference_api_key")


def _refuse_odd_endpoint(endpoint: str) -> str:
    url = urlsplit(endpoint)
    if url.scheme not in {"http", "https"} or not url.hostname or url.path.strip("/"):
        raise PydanticCustomError("endpoint", "this is not of the form http://host:port")
    return endpoint


def _refuse_odd_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise PydanticCustomError("url", "this is not a URL, as http://host:port")
    return text.rstrip("/")


def _refuse_odd_runner(text: str) -> str:
    url = urlsplit(text)
    if text in LOCAL_RUNNERS or (url.scheme in {"tcp", "tls"} and url.hostname and url.port and not url.path):
        return text
    reason = "this is neither threads, nor processes, nor the address of a Dask scheduler, as tcp://host:8786"
    raise PydanticCustomError("task_runner", reason)


class Settings(BaseModel):
    """Everything that the surroundings decide.

    Attributes:
        home: folder for all local state: embedded store, Prefect's database, logs.
        store_url: ``s3://bucket/prefix`` under which all zones live; without it each zone has its own bucket.
        images_url: where one zone lives, if not under ``store_url``; the same for each zone.
        s3_endpoint: of an S3 service other than AWS's, as ``http://host:port``.
        s3_access_key_id: AWS's own variables work too.
        s3_secret_access_key: AWS's own variables work too.
        s3_region: of the buckets; on AWS itself, ``AWS_REGION`` counts where it is not set.
        store_patience_s: how long a request to the store is retried before the step fails, in seconds.
        threads: concurrent requests to the store.
        decode_threads: images decoded at once; by default one per core.
        task_runner: who packs the chunks of a preparation, and answers the parts of a batch: ``threads`` of one
            process, ``processes`` of this machine, one per core, or the workers of a Dask scheduler, as
            ``tcp://host:8786`` or ``tls://host:8786``.
        training_memory_mb: pixels of a split that are kept in memory, in MiB; a larger split is read from a local file.
        training_disk_mb: pixels that training keeps in local files, in MiB; more are streamed from the store. By
            default as many as the disk has room for.
        training_images_at_once: how many images of a batch are computed together; fewer need less memory, and the batch
            stays what it is. By default all that a process has of it.
        device: where to train; ``auto`` takes CUDA, then MPS, then the CPU.
        inference_url: where ``deploy`` finds the inference server; by default it starts one on this machine. A host
            name stands for all of its addresses, each a replica; under target ``docker`` it is the gateway, under
            ``kubernetes`` the Service.
        inference_api_key: with which the inference server is asked, where it asks for one.
        deploy_target: ``follow`` waits until the replicas have followed the alias; ``docker`` replaces containers;
            ``kubernetes`` rolls a Deployment out.
        docker_project: compose project whose serving containers target ``docker`` replaces.
        kubernetes_namespace: of the Deployment that target ``kubernetes`` rolls out; by default the pod's own, else the
            kubeconfig's.
        kubernetes_deployment: its name.
        work_pool: what flow runs are: ``process`` of a worker, or ``kubernetes``, Jobs.
        flow_resources: folder with a file ``<flow>.json`` for each flow whose Jobs are unlike the others: values of the
            work pool's form.
        inference_port: preferred port of an inference server that ``deploy`` starts.
        public_url: where people's browsers find the inference server; links to reports need it.
        prefect_port: preferred port of the demo's Prefect server.
        store_port: preferred port of the embedded object store.
        predictions_retention_days: how long the log of predictions is kept, in days; 0 keeps it for good. The stack's
            store removes it by itself, `safelight store gc --delete` does elsewhere.
        uploads_quiet_s: how long nothing must change in a dataset before its uploads are trained on, in seconds.
        uploads_longest_s: how long uploads may go on before they are trained on all the same, in seconds.
        uploads_poll_s: how often the images zone is looked at for uploads, in seconds.
        uploads_host: address at which a store's webhook may tell of uploads.
        uploads_port: the port of it.
        uploads_token: what the webhook must send; without it none is listened to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Path(".safelight")
    store_url: str | None = None
    images_url: str | None = None
    datasets_url: str | None = None
    checkpoints_url: str | None = None
    models_url: str | None = None
    predictions_url: str | None = None
    s3_endpoint: Annotated[str, AfterValidator(_refuse_odd_endpoint)] | None = None
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None
    s3_region: str = "us-east-1"
    store_patience_s: float = Field(60.0, ge=0, le=600)
    threads: int = Field(16, ge=1, le=256)
    decode_threads: int | None = Field(None, ge=1, le=256)
    task_runner: Annotated[str, AfterValidator(_refuse_odd_runner)] = "threads"
    training_memory_mb: int = Field(4096, ge=64)
    training_disk_mb: int | None = Field(None, ge=64)
    training_images_at_once: int | None = Field(None, ge=2)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    inference_url: str | None = None
    inference_api_key: SecretStr | None = None
    deploy_target: Literal["follow", "docker", "kubernetes"] = "follow"
    docker_project: str | None = None
    kubernetes_namespace: str | None = None
    kubernetes_deployment: str = "serving"
    work_pool: Literal["process", "kubernetes"] = "process"
    flow_resources: Path | None = None
    inference_port: int = Field(8080, ge=1, le=65535)
    public_url: Annotated[str, AfterValidator(_refuse_odd_url)] | None = None
    prefect_port: int = Field(4200, ge=1, le=65535)
    store_port: int = Field(8333, ge=1, le=65535)
    predictions_retention_days: int = Field(90, ge=0, le=36500)
    uploads_quiet_s: float = Field(20.0, ge=1, le=3600)
    uploads_longest_s: float = Field(600.0, ge=1, le=86400)
    uploads_poll_s: float = Field(15.0, ge=1, le=3600)
    uploads_host: str = "127.0.0.1"
    uploads_port: int = Field(8090, ge=1, le=65535)
    uploads_token: SecretStr | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """The settings that ``environ`` holds.

        Raises:
            InvalidSettings: a variable is unknown, out of range, or names a file that cannot be read.
        """
        values = {_field(name): value for name, value in environ.items() if _is_ours(name)}
        _refuse_unknown(values, cls)
        values |= _from_files(values)
        given = {name: value for name, value in values.items() if value != "" and name in cls.model_fields}
        try:
            settings = cls.model_validate(_region_of_aws(environ, given) | given)
        except ValidationError as error:
            first = error.errors()[0]
            name = PREFIX + str(first["loc"][0]).upper()
            raise InvalidSettings(f"{name}: {first['msg']}.") from error
        return settings.model_copy(update={"home": settings.home.expanduser().absolute()})

    @property
    def cache(self) -> Path:
        """The folder for what can be made again."""
        return self.home / "cache"

    @property
    def inference_headers(self) -> dict[str, str]:
        """What a request to the inference server carries, beside its own."""
        key = self.inference_api_key
        return {"X-API-Key": key.get_secret_value()} if key else {}

    @property
    def uses_embedded_store(self) -> bool:
        """True when nothing names another object store."""
        urls = (self.store_url, *(getattr(self, f"{zone}_url") for zone in ZONES))
        return self.s3_endpoint is None and not any(urls)

    def zone_url(self, zone: Zone) -> str:
        """Where a zone lives: its own URL, else under the store's, else a bucket of its own."""
        own: str | None = getattr(self, f"{zone}_url")
        if own is not None:
            return own
        return f"{self.store_url.rstrip('/')}/{zone}" if self.store_url else f"s3://safelight-{zone}"


def _region_of_aws(environ: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Where this process runs on AWS, unless its store is somebody else's."""
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    return {"s3_region": region} if region and "s3_endpoint" not in given else {}


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX) and not name.startswith(SERVING_PREFIX)


def _field(name: str) -> str:
    return name.removeprefix(PREFIX).lower()


def _from_files(values: Mapping[str, str]) -> dict[str, str]:
    """The values of the ``…_FILE`` variables, by the name of the setting that each stands for."""
    found = {}
    for secret in SECRETS:
        path = values.get(f"{secret}_file")
        if not path:
            continue
        if values.get(secret):
            both = f"{PREFIX}{secret.upper()}"
            raise InvalidSettings(f"{both} and {both}_FILE are both set; keep one.")
        try:
            found[secret] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSettings(f"{PREFIX}{secret.upper()}_FILE: cannot read {path}: {error}.") from error
    return found


def _refuse_unknown(names: Mapping[str, str], settings: type[BaseModel]) -> None:
    known = [*settings.model_fields, *(f"{secret}_file" for secret in SECRETS)]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else "."
            raise InvalidSettings(f"{PREFIX}{name.upper()} is not a setting{hint}")
