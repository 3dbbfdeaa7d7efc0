"""From what the API server has of pods and Jobs to the first line of `pcmoe status`, all the way."""

import json
from typing import Any

import pytest
from tests.unit import remotely
from tests.unit.test_conditions import NOW, observation, there
from tests.unit.test_observe import NAME, TROUBLES, job, pod, terminated

from pcmoe_operator.conditions import status_of
from pcmoe_operator.observe import observe
from pcmoe_operator.reasons import Reason
from pcmoe_operator.remote import tables
from pcmoe_operator.remote.summary import details

Raw = dict[str, Any]
WORDS = "somebody's own words"


def first_line(pods: list[Raw], jobs: list[Raw]) -> str:
    """What is said of a consortium whose berlin looks like this, while lyon is ready."""
    berlin = observe(NAME, ["berlin"], 1, jobs, pods, []).participants["berlin"]
    status = status_of(None, observation({"berlin": berlin, "lyon": there("lyon")}), NOW)
    return tables.headline(details({**remotely.consortium(), "status": status}, []))


@pytest.mark.parametrize(("raw", "reason", "words"), TROUBLES.values(), ids=TROUBLES)
def test_a_pod_in_trouble_is_told_with_what_it_means_and_what_to_do(
    raw: Raw, reason: Reason, words: str
) -> None:
    line = first_line([raw], [job({"active": 1})])
    assert line.startswith(f"{NAME}: berlin: {reason.meaning}")
    assert words.rstrip(".") in line and reason.remedy in line


ENDS = {
    64: Reason.ConfigurationRefused,
    65: Reason.DatasetUnreadable,
    66: Reason.ResourceMissing,
    67: Reason.IdentityRefused,
    68: Reason.ProtocolBroken,
    69: Reason.Diverged,
    70: Reason.InternalError,
    74: Reason.StorageFailed,
}


@pytest.mark.parametrize(("code", "reason"), ENDS.items())
def test_a_node_that_ended_for_good_is_told_with_its_words_and_what_to_do(code: int, reason: Reason) -> None:
    policy = (
        f"Container node for pod hospital/x failed with exit code {code} matching FailJob rule at index 0"
    )
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": policy}
    left = json.dumps({"exitCode": code, "error": WORDS, "committed": 7})
    line = first_line(
        [pod(terminated(code, left), node="gpu-1")], [job({"failed": 1, "conditions": [failed]})]
    )
    assert line.startswith(f"{NAME}: berlin: {reason.meaning}")
    assert WORDS in line and reason.remedy in line
