"""GET, POST and DELETE /v1/plan."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from fjx import (
    EngineDeadError,
    MeshError,
    PlanStatus,
    RegranularizationBusyError,
    SwitchRecord,
    UserError,
)
from fjx.errors import MemoryFitError
from fjx.serving.config import ServerConfig
from fjx.sharding.plan.plan_json import deployment_from_json, deployment_to_json
from tests.unit.serving.fake_plans import even

PATH = "/v1/plan"


def error_of(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_plan_that_serves(call):
    answer = call("GET", PATH).json()
    assert (answer["object"], answer["state"], answer["stages"]) == ("plan", "serving", 1)
    assert (answer["switch"], answer["last_switch"]) == (None, None)
    assert deployment_from_json({"replicas": answer["replicas"]}) == even(1)


@pytest.mark.parametrize("name", ["x" * 5000, "./" + "x" * 5000, "abc\0b", "./a\0b.toml"])
def test_a_mesh_with_a_name_that_no_file_can_have_is_the_clients_mistake(call, name):
    message = error_of(call("POST", PATH, json={"mesh": name}), 400)["message"]
    assert "mesh" in message


def test_change_under_way_is_shown_with_its_numbers(call, llm):
    record = SwitchRecord(
        number=3,
        reason="burst of requests",
        before=even(1),
        after=even(2),
        state="copying",
        progress=0.25,
        seconds={"planned": 0.5, "compiling": 2.0},
        planned_bytes=1000,
        parameter_bytes=300,
        kv_bytes=20,
        dirty_bytes=1,
        dirty_pages=4,
        rounds=2,
    )
    llm.plans.status = PlanStatus(even(1), switch=record)
    answer = call("GET", PATH).json()
    assert (answer["state"], answer["stages"]) == ("copying", 1)
    assert answer["switch"] == {
        "number": 3,
        "reason": "burst of requests",
        "state": "copying",
        "progress": 0.25,
        "error": None,
        "seconds": {"planned": 0.5, "compiling": 2.0},
        "pause_seconds": None,
        "planned_bytes": 1000,
        "moved_bytes": 321,
        "parameter_bytes": 300,
        "kv_bytes": 20,
        "dirty_bytes": 1,
        "dirty_pages": 4,
        "rounds": 2,
        "from": deployment_to_json(even(1)),
        "to": deployment_to_json(even(2)),
    }


def test_plan_changes_to_a_number_of_stages(post, llm):
    response = post(PATH, stages=4)
    assert response.status_code == 200
    answer = response.json()
    assert (answer["state"], answer["stages"]) == ("serving", 4)
    assert answer["last_switch"]["state"] == "done"
    assert llm.plans.asked == [(4, True)]


@pytest.mark.parametrize(
    "plan",
    [
        {"mesh": "pipeline-2"},
        deployment_to_json(even(2)),
        deployment_to_json(even(2))["replicas"][0],
    ],
)
def test_plan_changes_to_a_mesh_or_a_whole_plan(post, llm, plan):
    answer = post(PATH, **plan).json()
    assert answer["stages"] == 2
    assert llm.plans.status.deployment.replicas[0].granularity == 2


def test_the_answer_is_a_plan_that_can_be_sent_back(call, post, llm):
    before = call("GET", PATH).json()
    assert post(PATH, stages=3).json()["stages"] == 3
    assert post(PATH, replicas=before["replicas"]).status_code == 200
    assert llm.plans.status.deployment == even(1)


def test_change_that_nobody_waits_for_is_accepted_at_once(post, llm):
    llm.plans.seconds = 60
    response = post(PATH, stages=2, wait=False)
    assert response.status_code == 202
    answer = response.json()
    assert (answer["state"], answer["stages"]) == ("copying", 1)
    assert llm.plans.asked == [(2, False)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "expected stages"),
        ({"wait": True}, "expected stages"),
        ({"microbatches": 2}, "expected stages"),
        ({"stages": 0}, "stages must be 1 to 8"),
        ({"stages": 9}, "stages must be 1 to 8"),
        ({"stages": 10**30}, "stages must be 1 to 8"),
        ({"stages": True}, "stages must be a number of stages, or a list .* got True"),
        ({"stages": 2.0}, "stages must be a number of stages, or a list .* got 2.0"),
        ({"stages": 2, "microbatches": 4}, "stands alone"),
        ({"stages": 2, "mesh": "single"}, "leave out stages"),
        ({"mesh": 2}, "mesh must be a text"),
        ({"mesh": "pipeline-3"}, "there is no mesh 'pipeline-3'"),
        ({"stages": 2, "wait": "no"}, "wait must be true or false"),
        ({"stage": 2}, "did you mean 'stages'"),
        ({"stages": []}, "at least one stage"),
        ({"stages": [{"granules": [0, 8]}]}, "stages.*devices"),
        ({"replicas": [], "stages": [{}]}, "unknown key 'stages'"),
    ],
)
def test_wrong_plan_is_refused_with_the_reason(post, llm, body, expected):
    error = error_of(post(PATH, **body), 400)
    assert error["code"] == "invalid_plan"
    assert error["type"] == "invalid_request_error"
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(error["message"])
    assert llm.plans.status == PlanStatus(even(1))


@pytest.mark.parametrize("body", [{"mesh": "pipeline-3"}, {"stages": 9}])
def test_wrong_plan_is_logged_once(post, caplog, body):
    caplog.set_level("INFO", "fjx.server")
    post(PATH, **body)
    (record,) = caplog.records
    assert "refused with 400" in record.getMessage()


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (MeshError("4 devices are needed, this machine has 2"), 400, "invalid_plan"),
        (UserError("no"), 400, "invalid_plan"),
        (MemoryFitError("stage 1 needs 3 GiB, 2 GiB are free"), 400, "does_not_fit"),
        (RegranularizationBusyError("change 7 is compiling"), 409, "switch_in_progress"),
        (EngineDeadError("the loop has ended"), 503, "engine_dead"),
    ],
)
def test_refusal_of_the_engine(post, llm, refusal, status, code):
    llm.plans.refuse = refusal
    error = error_of(post(PATH, stages=2), status)
    assert (error["code"], error["message"]) == (code, str(refusal))


def test_aborted_change_says_why_and_what_serves(post, llm):
    llm.plans.failure = "compiling stage 2 failed: out of memory"
    error = error_of(post(PATH, stages=2), 500)
    assert (error["code"], error["type"]) == ("switch_aborted", "server_error")
    assert "compiling stage 2 failed: out of memory" in error["message"]
    assert "the plan before it serves on" in error["message"]


def test_nothing_to_abort(call):
    assert error_of(call("DELETE", PATH), 409)["code"] == "no_switch"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_no_plan_before_the_model_is_loaded(call, llm, method):
    llm.is_ready = False
    body = {"json": {"stages": 2}} if method == "POST" else {}
    assert error_of(call(method, PATH, **body), 503)["code"] == "not_ready"
    assert llm.plans.asked == []


def test_second_change_is_refused_and_the_first_can_be_aborted(served, llm):
    llm.plans.seconds = 60
    answers = []
    first = threading.Thread(
        target=lambda: answers.append(httpx.post(served.url + PATH, json={"stages": 2}))
    )
    first.start()
    served.wait_until(lambda: llm.plans.status.switch)
    busy = httpx.post(served.url + PATH, json={"stages": 4})
    assert error_of(busy, 409)["code"] == "switch_in_progress"
    aborted = httpx.delete(served.url + PATH).json()
    assert (aborted["state"], aborted["stages"]) == ("serving", 1)
    assert aborted["last_switch"]["state"] == "aborted"
    first.join(30)
    assert error_of(answers[0], 500)["code"] == "switch_aborted"


def test_change_goes_on_when_its_client_leaves(served, llm):
    llm.plans.seconds = 1.5
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(served.url + PATH, json={"stages": 2}, timeout=httpx.Timeout(60, read=0.1))
    assert httpx.get(served.url + PATH).json()["state"] == "copying"
    served.wait_until(lambda: llm.plans.ended)
    answer = httpx.get(served.url + PATH).json()
    assert (answer["stages"], answer["last_switch"]["state"]) == (2, "done")


def test_requests_are_served_while_a_change_is_waited_for(served, llm):
    llm.plans.seconds = 60
    httpx.post(served.url + PATH, json={"stages": 2, "wait": False})
    begin = time.monotonic()
    answer = httpx.post(f"{served.url}/v1/completions", json={"prompt": "Hi"})
    assert answer.json()["choices"][0]["text"] == "Hello"
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("given", [{}, bearer("wrong"), bearer("key"), {"Authorization": "admin"}])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize("path", [PATH, f"{PATH}%0A"])
def test_only_the_admin_key_changes_the_plan(call, llm, given, method, path):
    config = ServerConfig(api_key="key", admin_key="admin")
    body = {"json": {"stages": 2}} if method == "POST" else {}
    error = error_of(call(method, path, config, headers=given, **body), 401)
    assert error["code"] == "invalid_admin_key"
    assert llm.plans.asked == []


def test_admin_key_opens_everything(call):
    config = ServerConfig(api_key="key", admin_key="admin")
    headers = bearer("admin")
    assert call("POST", PATH, config, json={"stages": 2}, headers=headers).status_code == 200
    assert call("GET", "/v1/models", config, headers=headers).status_code == 200


def test_plan_is_read_like_anything_else(call):
    with_both = ServerConfig(api_key="key", admin_key="admin")
    assert call("GET", PATH, with_both).status_code == 401
    assert call("GET", PATH, with_both, headers=bearer("key")).status_code == 200
    assert call("GET", PATH, ServerConfig(admin_key="admin")).status_code == 200


def test_without_an_admin_key_the_api_key_changes_the_plan(call):
    config = ServerConfig(api_key="key")
    assert call("POST", PATH, config, json={"stages": 2}).status_code == 401
    changed = call("POST", PATH, config, json={"stages": 2}, headers=bearer("key"))
    assert changed.status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_mesh_file_may_be_named_on_this_machine(call, tmp_path, host):
    file = tmp_path / "two.toml"
    file.write_text("[[stage]]\n[[stage]]\n")
    answer = call("POST", PATH, ServerConfig(host=host), json={"mesh": str(file)})
    assert answer.json()["stages"] == 2


def test_mesh_file_may_not_be_named_from_elsewhere_without_the_admin_key(call, llm, tmp_path):
    file = tmp_path / "two.toml"
    file.write_text("[[stage]]\n[[stage]]\n")
    body = {"mesh": str(file)}
    error = error_of(call("POST", PATH, ServerConfig(host="0.0.0.0"), json=body), 403)
    assert (error["code"], error["param"]) == ("mesh_file_refused", "mesh")
    assert "--admin-key" in error["message"]
    assert llm.plans.asked == []
    keyed = ServerConfig(host="0.0.0.0", admin_key="admin")
    answer = call("POST", PATH, keyed, json=body, headers=bearer("admin"))
    assert answer.json()["stages"] == 2


def test_ready_made_mesh_may_be_named_from_elsewhere(call):
    config = ServerConfig(host="0.0.0.0")
    assert call("POST", PATH, config, json={"mesh": "pipeline-4"}).json()["stages"] == 4


def test_web_page_cannot_change_the_plan_unasked(call, llm):
    for headers in ({}, {"Content-Type": "text/plain"}):
        response = call("POST", PATH, content=b'{"stages": 2}', headers=headers)
        assert "application/json" in error_of(response, 400)["message"]
    assert llm.plans.asked == []
