"""What `helm test` runs, in the operator's image: ask a service a question, or see that the parts of the platform answer."""

import json
import os
import urllib.request

from llmops_operator.domain.service_workloads import gateway_name


def get(url, headers=None, body=None, seconds=15):
    """The text of an answer; an HTTPError or URLError when there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **(headers or {})})  # noqa: S310
    with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
        return answer.read().decode()


service = os.environ["SERVICE"]
if service:
    url = f"http://{gateway_name(service)}.{os.environ['SERVICE_NAMESPACE']}.svc:8080/v1/chat/completions"
    messages = [{"role": "user", "content": os.environ["QUESTION"]}]
    body = {"model": service, "messages": messages, "max_tokens": 128, "temperature": 0}
    answer = json.loads(get(url, body=body, seconds=300))
    text = answer["choices"][0]["message"]["content"]
    print(text)
    if not text:
        raise SystemExit("the answer is empty")
    if not answer.get("citations"):
        raise SystemExit("the answer has no source: ask something that the documents tell (test.question)")
    for cited in answer["citations"]:
        print(f"[{cited['n']}] {cited.get('title') or cited.get('path')}")
else:
    key = os.environ.get("QDRANT_API_KEY")
    get(os.environ["OPERATOR_URL"] + "/readyz")
    if os.environ["MLFLOW_TRACKING_URI"]:
        get(os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/experiments/get?experiment_id=0")
    get(os.environ["QDRANT_URL"] + "/collections", {"api-key": key} if key else None)
    print("the operator, MLflow and the vector store answer")
