"""Single values of the manifest: their patterns, and their canonical forms, in which they are held.

Decimals are strings in the API, canonically the shortest `d[.d…]e±N`; the model's configuration is RFC 8785
JSON; sets are sorted. A value that breaks its rule raises a pydantic error whose type is the rule's id.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import ValidationInfo
from pydantic_core import PydanticCustomError

from pcmoe_operator.constants import MAX_CONFIG_BYTES, RESERVED_ANNOTATIONS, RESERVED_LABELS
from pcmoe_operator.shape import canonical_config, parse_config

LABEL = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
DECIMAL = r"^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$"
FINGERPRINT = r"^sha256:[0-9a-f]{64}$"
ENDPOINT = r"^([A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:.]{2,45}\]):[0-9]{1,5}$"
EXPERTS = r"^[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*$"
JURISDICTION = r"^[A-Z][A-Z0-9-]*$"
RELATIVE_PATH = r"^[^/\x00-\x1f][^\x00-\x1f]*$"
CERTIFICATES = r"^\s*-----BEGIN CERTIFICATE-----"
DNS_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
IMAGE = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$"
LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$"
QUANTITY = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|Ki|[MGTPE]i?)?$"
RESOURCE_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
SIZE = r"^[1-9][0-9]{0,8}(Mi|Gi|Ti|Pi|M|G|T|P)$"

FORMATS = {
    LABEL: "must be lower-case letters, digits and hyphens, with a letter or digit at either end",
    DECIMAL: 'must be a decimal number in quotes, such as "2e-5" or "0.95"',
    FINGERPRINT: "must be `sha256:` and 64 hexadecimal digits",
    ENDPOINT: "must be host:port",
    EXPERTS: "must be numbers and ranges of experts, such as 0-3,8",
    JURISDICTION: "must be capital letters, digits and hyphens, such as EU or US-CA",
    RELATIVE_PATH: "must be a path inside the dataset volume: not absolute",
    CERTIFICATES: "must be PEM text that begins with a certificate",
    DNS_NAME: "must be lower-case letters, digits, hyphens and dots, with a letter or digit at either end",
    IMAGE: "must be an image reference, such as registry.example/name@sha256:…",
    LABEL_VALUE: "must be letters, digits, dots, hyphens and underscores, with a letter or digit at either end",
    QUANTITY: "must be a quantity, such as 500m, 4 or 64Gi",
    RESOURCE_NAME: "must be an extended resource with its domain, such as nvidia.com/gpu",
    SIZE: "must be a whole number with a unit, such as 200Gi",
}
"""What each pattern means, in words."""


def canonical_decimal(text: str) -> str:
    """The shortest `d[.d…]e±N` of a decimal number; raises ValueError for anything else."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a decimal number") from None
    if not value.is_finite():
        raise ValueError(f"{text!r} is not a finite number")
    sign, digits, exponent = value.normalize().as_tuple()
    assert isinstance(exponent, int)
    mantissa = "".join(map(str, digits))
    power = exponent + len(mantissa) - 1 if value else 0
    return ("-" if sign else "") + mantissa[0] + ("." + mantissa[1:] if mantissa[1:] else "") + f"e{power:+d}"


def expert_numbers(text: str) -> tuple[int, ...]:
    """The experts that `0-3,8` names, in the order written; the text has the form of `EXPERTS`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def expert_ranges(numbers: tuple[int, ...]) -> str:
    """The shortest text that names these experts, ascending: (8, 0, 1, 2, 3) -> `0-3,8`."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def unquoted_number(value: object, info: ValidationInfo) -> object:
    """In a file an unquoted number is taken for the decimal it shows; the API has strings only."""
    from_file = isinstance(info.context, dict) and info.context.get("file")
    if from_file and isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    return value


@dataclass(frozen=True, slots=True)
class Between:
    """Holds a decimal between two bounds, and canonicalises it; `above` and `below` leave out the bound."""

    low: str
    high: str
    above: bool = False
    below: bool = False

    def __call__(self, text: str) -> str:
        value, low, high = Decimal(text), Decimal(self.low), Decimal(self.high)
        if value < low or value > high or (self.above and value == low) or (self.below and value == high):
            raise PydanticCustomError("bounds", "must be {rule}", {"rule": self.rule})
        return canonical_decimal(text)

    @property
    def rule(self) -> str:
        """The bounds in words."""
        least = f"{'greater than' if self.above else 'at least'} {self.low}"
        return f"{least} and {'less than' if self.below else 'at most'} {self.high}"


def config_text(text: str) -> str:
    """A model's configuration as compact JSON with sorted keys, in NFC.

    A whole float stays a float: transformers refuses `8` where it wants `8.0`. The digest doesn't tell them
    apart.
    """
    try:
        composed = unicodedata.normalize("NFC", _compact(parse_config(text)))
        compact = _compact(parse_config(composed))
        canonical_config(compact)
    except ValueError as error:
        raise PydanticCustomError(
            "config-json", "must be a JSON object: {reason}", {"reason": str(error)}
        ) from None
    if len(compact.encode()) > MAX_CONFIG_BYTES:
        raise PydanticCustomError("bounds", "must be at most 16 KiB")
    return compact


def _compact(config: dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_experts(text: str) -> str:
    """The shortest text for the experts that a text of the form of `EXPERTS` names."""
    parts = [part.partition("-") for part in text.split(",")]
    if any(last and int(last) < int(first) for first, _, last in parts):
        raise PydanticCustomError("expert-ranges", "a range must ascend, like 0-3")
    if len(set(numbers := expert_numbers(text))) < len(numbers):
        raise PydanticCustomError("expert-ranges", "must name each expert once")
    return expert_ranges(numbers)


def path_inside(path: str) -> str:
    """A relative path that doesn't leave its volume."""
    if ".." in path.split("/"):
        raise PydanticCustomError("relative-path", "must stay inside the dataset volume: no `..`")
    return path


def endpoint_with_port(endpoint: str) -> str:
    """A `host:port` with a port that exists."""
    if not 1 <= int(endpoint.rpartition(":")[2]) <= 65535:
        raise PydanticCustomError("bounds", "must have a port between 1 and 65535")
    return endpoint


def sorted_set(values: tuple[str, ...]) -> tuple[str, ...]:
    """A set of texts, ascending."""
    if len(set(values)) < len(values):
        raise PydanticCustomError("unique", "must name each value once")
    return tuple(sorted(values))


_UNITS = {"": 1, "k": 10**3, **{unit: 10 ** (3 * i) for i, unit in enumerate("MGTPE", 2)}}
_UNITS |= {"Ki": 2**10, **{f"{unit}i": 2 ** (10 * i) for i, unit in enumerate("MGTPE", 2)}}


def quantity(text: str) -> Decimal:
    """The number that a Kubernetes quantity stands for: 1Ki is 1024; raises ValueError for other text."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)(m|k|Ki|[MGTPE]i?)?", text, re.ASCII)
    try:
        number = Decimal(match.group(1) if match else "")
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a quantity") from None
    unit = (match.group(2) if match else None) or ""
    return number / 1000 if unit == "m" else number * _UNITS[unit]


def number_as_text(value: object) -> object:
    """A whole number as the quantity it stands for: Kubernetes takes both."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def extended_resource(name: str) -> str:
    """The name of a resource that whole devices are counted by, not one of Kubernetes' own."""
    if "kubernetes.io/" in name or name.startswith("requests."):
        raise PydanticCustomError("extended-resource", "must not be one of Kubernetes' own resources")
    return name


_KEY = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII
)


def qualified_keys(values: Mapping[str, str]) -> Mapping[str, str]:
    """Labels whose keys Kubernetes takes: `name` or `domain/name`."""
    if wrong := [key for key in values if not _KEY.fullmatch(key)]:
        raise PydanticCustomError(
            "label-key", "{key} must be a name, or a domain, a slash and a name", {"key": repr(wrong[0][:63])}
        )
    return values


def label_keys(values: Mapping[str, str]) -> Mapping[str, str]:
    """Labels that nobody else relies on."""
    return _unreserved(qualified_keys(values), RESERVED_LABELS)


def annotation_keys(values: Mapping[str, str]) -> Mapping[str, str]:
    """Annotations that nobody else relies on, and that stand for no security context."""
    return _unreserved(qualified_keys(values), RESERVED_ANNOTATIONS)


def _unreserved(values: Mapping[str, str], reserved: Sequence[str]) -> Mapping[str, str]:
    if wrong := [key for key in values if key.startswith(tuple(reserved))]:
        text = "must not use keys under {reserved}, as {key} does"
        raise PydanticCustomError(
            "reserved-key", text, {"reserved": " or ".join(reserved), "key": repr(wrong[0])}
        )
    return values
