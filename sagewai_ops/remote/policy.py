"""The smallest rights that a place needs, and the rule that removes parts of uploads.

Source: the documentation of the actions of S3, Google Cloud Storage and Azure. A client that is
killed cannot abort its upload in parts; the parts cost money and are not listed as objects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

if TYPE_CHECKING:
    from sagewai_ops.remote.address import Address

_DAYS = 2  # an upload that began before was given up


@dataclass(frozen=True, slots=True)
class Advice:
    """What to set up for a place.

    Attributes:
        policy: The least rights, in the provider's own form.
        for_pruning: Those in it that only pruning needs.
        lifecycle: The rule that removes the parts of killed uploads; "" if none is needed.
        command: That sets the rule; "" if none is needed.
    """

    policy: str
    for_pruning: str
    lifecycle: str
    command: str


def advise(address: Address) -> Advice:
    """Return the least rights and the rule for a place."""
    return _ADVICE[address.scheme](address)


def _s3(address: Address) -> Advice:
    arn = f"arn:aws:s3:::{address.bucket}"
    prefix = f"{address.prefix}/" if address.prefix else ""
    listing: dict[str, Any] = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": arn}
    if prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": [f"{prefix}*"]}}
    objects = {
        "Effect": "Allow",
        "Action": [
            *("s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectRetention"),
            *("s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject"),
        ],
        "Resource": f"{arn}/{prefix}*",
    }
    rule = {
        "ID": "sagewai-ops-parts",
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _DAYS},
    }
    lifecycle = _compact({"Rules": [rule]})
    return Advice(
        _compact({"Version": "2012-10-17", "Statement": [listing, objects]}),
        "s3:DeleteObject",
        lifecycle,
        f"aws s3api put-bucket-lifecycle-configuration --bucket {address.bucket}"
        f" --lifecycle-configuration {shell_word(lifecycle)}",
    )


def _gs(address: Address) -> Advice:
    rule = {"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"age": _DAYS}}
    lifecycle = _compact({"rule": [rule]})
    permissions = ("storage.objects.list", "storage.objects.get", "storage.objects.create")
    uploads = ("storage.multipartUploads.create", "storage.multipartUploads.abort")
    return Advice(
        ", ".join((*permissions, *uploads, "storage.objects.delete")),
        "storage.objects.delete, also to replace an object",
        lifecycle,
        f"gcloud storage buckets update gs://{address.bucket} --lifecycle-file=FILE",
    )


def _az(address: Address) -> Advice:
    blobs = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"
    scope = f"the container {address.bucket} of the account {address.account}"
    return Advice(
        f"{blobs}/read, {blobs}/write, {blobs}/add/action, {blobs}/delete on {scope}",
        f"{blobs}/delete",
        "",  # Azure removes blocks that were not committed after a week
        "",
    )


def _sftp(address: Address) -> Advice:
    user = address.user or "USER"
    return Advice(
        f"Match User {user}\n  ForceCommand internal-sftp\n  DisableForwarding yes",
        "write permission for the directory",
        "",  # the next upload removes files of killed ones after a day
        "",
    )


_ADVICE: Mapping[str, Callable[[Address], Advice]] = {
    "s3": _s3,
    "gs": _gs,
    "az": _az,
    "sftp": _sftp,
}


def _compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))
