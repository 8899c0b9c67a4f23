"""What controllers, a kubelet and the programs would have done, where there is nothing but an API server.

Each Job gets a pod that has succeeded, each Deployment a pod that is ready. The operator finds everything where it would be: a result in the
log of the pod (the API server asks the kubelet of a Node, which is in here), a gateway's report at the pod's address (of 127.0.0.0/8).
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration

from harness.api_server import ApiServer
from harness.state import free_ports
from llmops_api.names import index_alias
from llmops_api.programs import Said
from llmops_operator.backends.kubernetes.api import Api, Resource
from llmops_operator.backends.kubernetes.cache import Cache, key_of
from llmops_operator.backends.kubernetes.children import CONFIG_MAP, DEPLOYMENT, JOB, POD
from llmops_operator.backends.kubernetes.client import Client
from llmops_operator.backends.kubernetes.informer import Informer
from llmops_operator.backends.kubernetes.rendering.names import GATEWAY_PORT, ROLE, SELECTOR, live_name
from llmops_operator.controllers.ports import Key, NotFound, Unavailable
from llmops_operator.domain.workload import Role

NODE = "stand-in"
NODES = "/api/v1/nodes"
FIRST_ADDRESS = ipaddress.IPv4Address("127.66.0.1")
Manifest = Mapping[str, Any]


class StandIn:
    """In a namespace, or in all. `pause` is how long each program works."""

    def __init__(
        self, found: Configuration, server: ApiServer, *, namespace: str | None = None, pause: float = 0
    ) -> None:
        self._server, self._namespace, self._pause = server, namespace, pause
        self._client = Client(found, meter=self)
        self._api = Api(self._client)
        self.writes = 0
        """What it has written so far."""
        self._cache = Cache()
        self._begun: set[str] = set()
        self._todo: asyncio.Queue[Manifest] = asyncio.Queue()
        self._gateways: dict[str, tuple[str, str]] = {}
        self._runners: list[web.AppRunner] = []

    async def run(self, workers: int = 8) -> None:
        """Play the parts until cancelled."""
        try:
            await self._be_a_node()
            async with asyncio.TaskGroup() as tasks:
                for resource in (JOB, DEPLOYMENT, CONFIG_MAP):
                    tasks.create_task(self._informer(resource).run())
                for _ in range(workers):
                    tasks.create_task(self._work())
        finally:
            for runner in self._runners:
                await runner.cleanup()
            await self._client.close()

    def wrote(self, verb: str, resource: str, code: int) -> None:
        self.writes += 200 <= code < 300

    def _informer(self, resource: Resource) -> Informer:
        return Informer(
            self._api,
            resource,
            self._cache,
            selector=SELECTOR,
            namespace=self._namespace,
            changed=self._changed,
            gone=lambda key: None,
        )

    def _changed(self, child: Manifest) -> None:
        if child["kind"] != "ConfigMap" and child["metadata"]["uid"] not in self._begun:
            self._begun.add(child["metadata"]["uid"])
            self._todo.put_nowait(child)

    async def _work(self) -> None:
        while True:
            main = await self._todo.get()
            while True:
                try:
                    await (self._complete(main) if main["kind"] == "Job" else self._serve(main))
                    break
                except NotFound:
                    break
                except Unavailable:
                    await asyncio.sleep(0.5)

    async def _complete(self, job: Manifest) -> None:
        now = _now()
        pod = await self._pod(job)
        await self._status(POD, pod, {"phase": "Running", "startTime": now})
        if self._pause:
            await asyncio.sleep(self._pause)
        ended = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}}
        containers = [_container(job, ended, ready=False)]
        await self._status(POD, pod, {"phase": "Succeeded", "containerStatuses": containers})
        conditions = [
            {"type": type_, "status": "True", "lastTransitionTime": now, "lastProbeTime": now}
            for type_ in ("SuccessCriteriaMet", "Complete")
        ]
        status = {"startTime": now, "completionTime": now, "succeeded": 1, "conditions": conditions}
        await self._status(JOB, job, status)

    async def _serve(self, deployment: Manifest) -> None:
        address = str(FIRST_ADDRESS + len(self._gateways))
        if deployment["metadata"]["labels"][ROLE] == Role.GATEWAY:
            self._gateways[address] = key_of(deployment)[1:]
            await self._listen(address)
        if self._pause:
            await asyncio.sleep(self._pause)
        now = _now()
        running = _container(deployment, {"running": {"startedAt": now}}, ready=True)
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [ready]}
        pod = await self._pod(deployment)
        await self._status(POD, pod, {**status, "startTime": now, "containerStatuses": [running]})
        await self._status(DEPLOYMENT, deployment, {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1})

    async def _pod(self, main: Manifest) -> Manifest:
        metadata, template = main["metadata"], main["spec"]["template"]
        name = f"{metadata['name'][:50]}-{metadata['uid'][:8]}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": name, "namespace": metadata["namespace"]},
            "spec": {**template["spec"], "nodeName": NODE},
        }
        return await self._api.apply(POD, pod)

    async def _status(self, resource: Resource, one: Manifest, status: Manifest) -> None:
        path = resource.path(one["metadata"]["namespace"], one["metadata"]["name"], "status")
        await self._client.ask("PATCH", path, body={"status": status}, content_type="application/merge-patch+json")

    # What is asked over the network

    async def _be_a_node(self) -> None:
        (port,) = free_ports(1)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._server.folder / "pki/serving.crt", self._server.folder / "pki/serving.key")
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._log)
        await self._site(app, "127.0.0.1", port, context)
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        }
        query, merge = {"fieldManager": NODE, "force": "true"}, "application/merge-patch+json"
        await self._client.ask(
            "PATCH", f"{NODES}/{NODE}", query=query, body=node, content_type="application/apply-patch+yaml"
        )
        await self._client.ask("PATCH", f"{NODES}/{NODE}/status", body={"status": status}, content_type=merge)

    async def _listen(self, address: str) -> None:
        app = web.Application()
        app.router.add_get("/readyz", self._report)
        await self._site(app, address, GATEWAY_PORT)

    async def _site(self, app: web.Application, address: str, port: int, context: ssl.SSLContext | None = None) -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, address, port, ssl_context=context).start()

    async def _log(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["pod"].rsplit("-", 1)[0]
        config = self._cache.get(("ConfigMap", namespace, name))
        if config is None:
            raise web.HTTPNotFound
        text = "works\n"
        for file, result in (("training.json", _trained), ("indexing.json", _indexed)):
            if file in config["data"]:
                text += f"{Said.RESULT}{json.dumps(result(json.loads(config['data'][file])))}\n"
        return web.Response(text=text)

    async def _report(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        namespace, name = self._gateways[request.transport.get_extra_info("sockname")[0]]
        key: Key = ("ConfigMap", namespace, live_name(name))
        live = self._cache.get(key)
        if live is None:
            return web.json_response({"ready": False}, status=503)
        config = json.loads(live["data"]["gateway.json"])
        indexes = {one["name"]: f"{one['alias']}.1" for one in config["indexes"]}
        told = {"ready": True, "revision": config["revision"], "model": config["model"], "indexes": indexes}
        return web.json_response(told)


@asynccontextmanager
async def standing_in(server: ApiServer, **options: Any) -> AsyncIterator[StandIn]:
    """Have one beside what is done in the block."""
    found = Configuration()
    await kube_config.load_kube_config(str(server.kubeconfig), client_configuration=found)
    player = StandIn(found, server, **options)
    task = asyncio.create_task(player.run())
    try:
        yield player
    finally:
        task.cancel()
        [ended] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended  # whatever the block complains of comes from that


def _trained(config: Mapping[str, Any]) -> dict[str, Any]:
    model = {"name": config["spec"]["output"]["model"], "version": "1"}
    return {"runId": "0" * 32, "experimentId": "1", "steps": 5, "model": model}


def _indexed(config: Mapping[str, Any]) -> dict[str, Any]:
    alias = index_alias(config["object"]["namespace"], config["object"]["name"])
    serving = {"collection": f"{alias}.1", "fingerprint": "f" * 16, "digest": "d" * 16, "documents": 60, "chunks": 649}
    return {"alias": alias, "serving": serving, "counts": {"added": 60}}


def _container(main: Manifest, state: Manifest, *, ready: bool) -> dict[str, Any]:
    ours = main["spec"]["template"]["spec"]["containers"][0]
    about = {"name": ours["name"], "image": ours["image"], "imageID": "", "restartCount": 0}
    return {**about, "ready": ready, "state": state}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
