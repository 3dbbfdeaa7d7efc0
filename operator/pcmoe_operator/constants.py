"""The vocabulary of the API, written once."""

GROUP = "pcmoe.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "PCMoEConsortium"

OPERATOR = f"{GROUP}/operator"
"""Default of `spec.managedBy`: whoever writes another value looks after the consortium without us."""

AGREEMENT_FORMAT = "pcmoe-agreement/1"
"""First line of what the agreement digest is taken over. Defaults never change within one format."""
PLAN_FORMAT = "pcmoe-plan/1"
"""First line of what the plan digest is taken over."""

RESERVED_LABELS = (f"{GROUP}/", "app.kubernetes.io/")
"""Beginnings of the labels and annotations that the operator writes itself: policies and Services choose by them."""
RESERVED_ANNOTATIONS = (*RESERVED_LABELS, "container.apparmor.security.beta.kubernetes.io/")
"""The API server makes a security context of the last."""

COORDINATOR = "coordinator"
"""Reserved: the coordinator's identity, so no participant may be called so."""

BYTE_LEVEL_VOCABULARY = 258
"""Ids of the byte-level tokenizer: 256 bytes, end of document, padding."""

MAX_PARTICIPANTS = 64
MAX_OBJECT_NAME = 30
MAX_PARTICIPANT_NAME = 28
MAX_ATTEMPT = 999
"""Object name, participant and attempt, with a dot between, have to fit the 63 characters of a label."""
MAX_CONFIG_BYTES = 16 * 1024
MAX_AGREEMENT_BYTES = 64 * 1024
"""A peer with another digest is sent the canonical agreement; more than this is refused on both sides."""
