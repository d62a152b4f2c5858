"""The clients of obstore for a place: its endpoint, its region and its credentials.

The constructors of obstore read the environment too, and explicit values have priority over it. The
keys of S3 and Azure are given by a function, which nothing in the environment can complete or
replace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sagewai_ops.errors import UsageError

if TYPE_CHECKING:
    from sagewai_ops.remote.address import Address
    from sagewai_ops.remote.object_credentials import Credentials


def import_library() -> Any:
    """Return obstore.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import obstore
    except ImportError:
        raise UsageError(
            "object stores: obstore is not installed", hint="pip install 'sagewai-ops[remote]'"
        ) from None
    return obstore


def connect(
    address: Address,
    credentials: Credentials,
    environment: Mapping[str, str],
    client: dict[str, Any],
    retry: dict[str, Any],
) -> Any:
    """Return obstore's client for a place.

    Args:
        client: The options of its HTTP client.
        retry: Those of its repetitions.
    """
    import obstore.store

    stores: Any = obstore.store
    values = dict(credentials.values)
    shared: dict[str, Any] = {
        "prefix": address.prefix or None,
        "client_options": client,
        "retry_config": retry,
    }
    endpoint = address.endpoint or credentials.endpoint
    if address.scheme == "s3":
        endpoint = address.endpoint or _endpoint_of_aws(environment) or credentials.endpoint
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    if address.scheme == "s3":
        config: dict[str, Any] = {"conditional_put": "etag", "disable_bulk_delete": True}
        if not address.path_style:
            config["virtual_hosted_style_request"] = True
            scheme, separator, host = endpoint.partition("://")
            endpoint = f"{scheme}{separator}{address.bucket}.{host}" if endpoint else ""
        if endpoint:
            config |= {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint}
        if region := address.region or _region_of_aws(environment) or credentials.region:
            config["region"] = region
        if values:
            shared["credential_provider"] = lambda: {
                "access_key_id": values.get("access_key_id", ""),
                "secret_access_key": values.get("secret_access_key", ""),
                "token": values.get("session_token"),
                "expires_at": None,
            }
        return stores.S3Store(address.bucket, config=config, **shared)
    if address.scheme == "az":
        config = {"account_name": address.account, **({"endpoint": endpoint} if endpoint else {})}
        if key := values.pop("account_key", None):
            shared["credential_provider"] = lambda: {"access_key": key, "expires_at": None}
        elif signature := values.pop("sas_key", None):
            signature = signature.removeprefix("?")
            shared["credential_provider"] = lambda: {"sas_token": signature, "expires_at": None}
        else:
            config |= values
        return stores.AzureStore(address.bucket, config=config, **shared)
    config = {**values, **({"base_url": endpoint} if endpoint else {})}
    return stores.GCSStore(address.bucket, config=config, **shared)


def _endpoint_of_aws(environment: Mapping[str, str]) -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((environment[name] for name in names if environment.get(name)), "")


def _region_of_aws(environment: Mapping[str, str]) -> str:
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or ""
